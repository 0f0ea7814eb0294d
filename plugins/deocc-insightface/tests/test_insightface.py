"""A pack gives what insightface itself computes with it; nothing is downloaded; whatever is missing is said."""

import socket
import sys
import warnings

import numpy as np
import pytest
import torch

import deocc
from deocc.errors import InputError, MissingDependencyError, UsageError, WeightsError
from deocc.faces import Crop, align
from deocc.images import to_tensor
from deocc.testing.lfw import lfw_verification

pytest.importorskip("insightface", reason="needs insightface, which is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:insightface's code")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def images(count=2, size=112):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("batch", ["b", 1])
@pytest.mark.parametrize(("embedded", "manifest"), [(True, False), (False, False), (True, True)])
def test_normalisation(make, batch, embedded, manifest):
    """By the names of a pack's nodes, or by its manifest."""
    root = make(batch=batch, embedded=embedded, manifest=manifest)
    mean, std = (3.0, 4.0) if manifest else (0.0, 1.0) if embedded else (127.5, 127.5)
    pixels = (images().numpy() * 255 - mean) / std
    pooled = ((pixels - 1) * 2).reshape(2, 3, 7, 16, 7, 16).mean(axis=(3, 5)).reshape(2, 147)
    wanted = pooled @ np.random.default_rng(0).normal(size=(147, 8))
    found = deocc.recognizer(f"insightface:pack,root={root}")(images())
    np.testing.assert_allclose(found.numpy(), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("size", [112, 224])
def test_alignment_is_insightfaces_own(make, size):
    """A photo and five points, through ``model.get`` and through deocc: one embedding, but for interpolation."""
    from insightface.app.common import Face
    from insightface.model_zoo import get_model

    root = make(size=size)
    recognizer = deocc.recognizer("insightface", pack=str(root / "models" / "pack"))
    assert (recognizer.crop_size, recognizer.crop_zoom) == (size, 1.0)
    smooth = np.kron(np.random.default_rng(0).integers(0, 256, (20, 20, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    landmarks = Crop(300, 0.6).template() + np.random.default_rng(1).normal(0, 4, (5, 2)).astype(np.float32) + 40
    face = Face(kps=landmarks)
    get_model(str(recognizer.files[0]), providers=["CPUExecutionProvider"]).get(smooth[..., ::-1].copy(), face)
    found = recognizer(to_tensor(align(smooth, landmarks, Crop(size, 1.0))))[0].numpy()
    assert found @ (face.embedding / np.linalg.norm(face.embedding)) > 0.999


def test_the_recognition_network_is_found_among_others(make):
    root = make()
    pack = root / "models" / "pack"
    (make("other", size=192) / "models" / "other" / "recognition.onnx").rename(pack / "2d106det.onnx")
    assert deocc.recognizer(f"insightface:{pack}").files == (pack / "recognition.onnx",)
    (pack / "recognition.onnx").unlink()
    with pytest.raises(UsageError, match=r"has no recognition network among 2d106det\.onnx"):
        deocc.recognizer(f"insightface:{pack}")


def test_a_folder_of_the_packs_name_does_not_hide_it(make, tmp_path, monkeypatch):
    root = make()
    (tmp_path / "here" / "pack").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert deocc.recognizer(f"insightface:pack,root={root}").files == (root / "models" / "pack" / "recognition.onnx",)


def test_a_manifest_may_name_networks_below_it(make):
    root = make(manifest=True)
    pack = root / "models" / "pack"
    (pack / "below").mkdir()
    (pack / "recognition.onnx").rename(pack / "below" / "recognition.onnx")
    text = (pack / "manifest.json").read_text()
    (pack / "manifest.json").write_text(text.replace("recognition.onnx", "below/recognition.onnx"))
    found = deocc.recognizer(f"insightface:{pack}")
    assert [file.name for file in found.files] == ["recognition.onnx", "manifest.json"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_pack(tmp_path, folder):
    if folder:
        (tmp_path / "models" / "buffalo_l").mkdir(parents=True)
    with pytest.raises(WeightsError) as error:
        deocc.recognizer(f"insightface:root={tmp_path}")
    assert f"{tmp_path}/models/buffalo_l should hold its .onnx files, those of buffalo_l.zip" in str(error.value)
    assert "https://github.com/deepinsight/insightface" in str(error.value)


def test_a_broken_pack(make):
    root = make()
    (root / "models" / "pack" / "recognition.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match=r"the model pack in .*pack cannot be loaded: "):
        deocc.recognizer(f"insightface:pack,root={root}")


def test_another_input_size(make):
    root = make(size=128 + 5 * 16)  # 208: insightface takes it for a recognition network too
    with pytest.raises(InputError, match=r"faces of 112x112 pixels, or a multiple, are wanted, got 208x208"):
        deocc.recognizer(f"insightface:pack,root={root}")


def test_the_licence_is_told_once(make, monkeypatch):
    from deocc_insightface import recognize

    monkeypatch.setattr(recognize, "_said", set())
    root = make()
    with pytest.warns(UserWarning, match="for non-commercial research alone"):
        deocc.recognizer(f"insightface:pack,root={root}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deocc.recognizer(f"insightface:pack,root={root}")


def test_what_is_lacking(make, monkeypatch, tmp_path):
    from deocc_insightface.recognize import InsightFace

    monkeypatch.setenv("HOME", str(tmp_path))
    assert InsightFace.lacks() == (
        f"a model pack: insightface:FOLDER (there is none in {tmp_path}/.insightface/models/buffalo_l)"
    )
    make("buffalo_l")
    (tmp_path / ".insightface").mkdir()
    (tmp_path / "models").rename(tmp_path / ".insightface" / "models")
    assert InsightFace.lacks() == ""
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    with pytest.raises(MissingDependencyError, match="pip install insightface"):
        deocc.recognizer("insightface")


@pytest.mark.slow
def test_accuracy(shared, tmp_path):
    """No pack may be packaged, so a network of the same family is laid out as one; 0.9942 over all 6,000 pairs.

    The network normalises its input itself. A pack's networks say so by the names of their first nodes, this one's
    export does not: so they are renamed.
    """
    import onnx

    network = onnx.load(shared("matchers/mobilefacenet_insightface.onnx"))
    for node in network.graph.node[:8]:
        node.name = node.name.lstrip("/")
    onnx.save(network, tmp_path / "w600k_mbf.onnx")
    found = lfw_verification(deocc.recognizer(f"insightface:{tmp_path}"), shared("faces/lfw"), pairs=300)
    assert found.accuracy > 0.99
    assert found.separation == pytest.approx(6.78, abs=0.1)
