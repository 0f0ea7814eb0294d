"""canet: the contrastive attention network with dense field estimation of Ma et al., for face completion."""

from deocc.method import Method

METHOD = Method(
    api=1,
    name="canet",
    summary="finds the occlusion and completes the face at several scales, with its dense correspondence field",
    paper="Ma et al., Contrastive Attention Network with Dense Field Estimation for Face Completion, "
    "Pattern Recognition 2022",
    licence="Apache-2.0",
    config="deocc_canet.config:Config",
    restorer="deocc_canet.restorer:Restorer",
    tasks={
        "siamese": "deocc_canet.training:SiameseInference",
        "joint": "deocc_canet.training:JointTraining",
        "finder": "deocc_canet.training:FinderTraining",
    },
    weights={"restorer": "deocc_canet:weights/canet-128.safetensors"},
)
