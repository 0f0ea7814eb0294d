"""The public names, written down: adding, renaming or losing one is a decision, made here too."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import deocc

SURFACE = {
    "deocc": "occluder recognizer restorer unmask",
    "deocc.config": "did_you_mean from_dict from_toml recipe recipes replace to_dict to_toml",
    "deocc.data": (
        "AR CASIAWebFace CelebA FFHQ IJBC IdentityFolder ImageFolder LFW MFR2 PackReport PackedFace PackedFaces Pair "
        "PairedFaces PairedSampler READERS RMFRD RowView Sample Source UnpairedFaces UnpairedSampler VGGFace2 check "
        "concatenate pack read_pairs"
    ),
    "deocc.errors": "DeoccError InputError MissingDependencyError PluginError UsageError WeightsError",
    "deocc.faces": (
        "Crop DenseField Detector Face FaceMesh FaceModel MorphableModel TEMPLATE_112 align align_occlusion "
        "colour_field dense_field face_model paste_back"
    ),
    "deocc.files": "atomic_write locked make_folder sha256",
    "deocc.images": (
        "IMAGE_SUFFIXES MAX_PIXELS check_image find_images read_image read_profile to_tensor to_uint8 write_image"
    ),
    "deocc.info": "main text",
    "deocc.judge": "Report TASKS judge quality read retrieval verification write",
    "deocc.losses": "LPIPS StyleLoss",
    "deocc.method": (
        "API Engine Method Occluded Occluder PARTS Part Recognizer Restored Restorer Task Training check_images "
        "check_occlusion"
    ),
    "deocc.metrics": "occlusion_iou psnr ssim",
    "deocc.occlude": "MASKTHEFACE Occlusion fingerprint kind_of kinds occlude",
    "deocc.ops": (
        "Backend DomainCenters DualAttentionFusion Fusion InfoNCE KeyQueue RelationalDistillation area_downsample "
        "attention_blend backends build_info channel_attention_projection composite composite_uint8 "
        "contextual_attention contextual_attention_offsets domain_constrained_ranking gated_projection info_nce "
        "rasterise relational_angle relational_distance relational_distillation"
    ),
    "deocc.plugins": "GROUP OLDEST_API Problem get load names packaged_weights parse problems source_digest",
    "deocc.report": "INVENTED Picture Plot Row Section Strip Table contact_sheet html print_table",
    "deocc.scaffold": "KINDS new_plugin",
    "deocc.testing": "Check ContractError checks method_checks run_checks",
    "deocc.train": "PRECISIONS SingleDevice fit run train",
    "deocc.unmasking": "FEATHER UnmaskResult UnmaskedFace read_occlusion unmask",
    "deocc.weights": "CARD_KEYS card_path fill read read_card save",
}

NOT_API = {"__main__", "cli", "demo", "jobs"}
"""What the command line is made of."""


def public(name: str) -> set[str]:
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return {word for word in module.__all__ if not word.startswith("_")}
    return {
        word
        for word, value in vars(module).items()
        if not word.startswith("_") and (word.isupper() or getattr(value, "__module__", None) == name)
    } - {"TYPE_CHECKING"}


@pytest.mark.parametrize("module", SURFACE)
def test_public_names(module):
    assert " ".join(sorted(public(module))) == " ".join(sorted(SURFACE[module].split()))
    missing = [name for name in SURFACE[module].split() if not hasattr(importlib.import_module(module), name)]
    assert not missing


def test_every_module_is_listed():
    found = {module.name for module in pkgutil.iter_modules(deocc.__path__) if not module.name.startswith("_C")}
    assert {f"deocc.{name}" for name in found - NOT_API} == set(SURFACE) - {"deocc"}


@pytest.mark.parametrize("module", SURFACE)
def test_public_names_are_documented(module):
    """Each says something of its own: a docstring that is not inherited."""
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name in SURFACE[module].split():
        value = getattr(loaded, name)
        if callable(value):
            own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
            assert own, f"{module}.{name} has no docstring"


def test_importing_deocc_imports_nothing_else():
    """In a fresh interpreter: neither torch nor anything of ours."""
    code = "import sys; before = set(sys.modules); import deocc; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "cv2", "numpy", "safetensors", "rich", "tyro"}
    assert [name for name in done.stdout.split() if name.startswith("deocc.")] == []


def test_version():
    assert deocc.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="module 'deocc' has no attribute 'nothing'"):
        _ = deocc.nothing
