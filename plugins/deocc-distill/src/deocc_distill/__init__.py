"""distill: the de-occlusion distillation of Li et al., for the recognition of masked faces."""

from deocc.method import Method

METHOD = Method(
    api=1,
    name="distill",
    summary="completes the face with contextual attention, and recognizes it with a student distilled for such faces",
    paper="Li et al., Look Through Masks: Towards Masked Face Recognition with De-Occlusion Distillation, "
    "ACM Multimedia 2020",
    licence="Apache-2.0",
    config="deocc_distill.config:Config",
    restorer="deocc_distill.restorer:Restorer",
    recognizer="deocc_distill.recognizer:Recognizer",
    tasks={
        "deocclusion": "deocc_distill.deocclusion:DeocclusionTraining",
        "distillation": "deocc_distill.distillation:DistillationTraining",
        "joint": "deocc_distill.distillation:JointTraining",
    },
    weights={
        "restorer": "deocc_distill:weights/distill-g-128.safetensors",
        "recognizer": "deocc_distill:weights/distill-student-112.safetensors",
    },
)
