"""canet: completion of occluded faces, after the contrastive attention network of Ma et al."""

from deocc.method import Method

METHOD = Method(
    api=1,
    name="canet",
    summary="encoder-decoder that finds the occlusion and completes the face",
    paper="Ma et al., Contrastive Attention Network with Dense Field Estimation for Face Completion, "
    "Pattern Recognition 2022",
    licence="Apache-2.0",
    config="deocc_canet.config:Config",
    restorer="deocc_canet.restorer:Restorer",
    tasks={
        "begin": "deocc_canet.training:Beginning",
        "complete": "deocc_canet.training:Completion",
        "refine": "deocc_canet.training:Refinement",
        "polish": "deocc_canet.training:Polishing",
    },
    weights={"restorer": "deocc_canet:weights/canet-128.safetensors"},
)
