"""The network is the one of the published weights, and its gradients are usable."""

import cv2
import numpy as np
import pytest
import torch

import deocc


@pytest.fixture(scope="module")
def recognizer():
    return deocc.recognizer("mobilefacenet")


def images(count, seed=0):
    """Smooth pictures with some noise, (count, 3, 112, 112)."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 7, 7, generator=generator), size=112, mode="bilinear")
    return (smooth + 0.1 * torch.randn(count, 3, 112, 112, generator=generator)).clamp(0, 1)


def test_equals_the_published_onnx(recognizer, shared):
    """The ONNX export of the same weights, run by OpenCV, on preprocessed input."""
    net = cv2.dnn.readNetFromONNX(str(shared("matchers/mobilefacenet_ms1m.onnx")))
    batch = images(4)
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    ours = recognizer(batch).numpy()
    for image, embedding in zip(batch.numpy(), ours, strict=True):
        net.setInput(((image - mean) / std)[None])
        wanted = net.forward().reshape(-1)
        np.testing.assert_allclose(embedding, wanted / np.linalg.norm(wanted), atol=1e-4)


def test_gradient_matches_a_difference_quotient(recognizer):
    wanted = recognizer(images(1, seed=1))
    image = (0.25 + 0.5 * images(1)).requires_grad_(True)  # room on both sides for the quotient's steps
    (recognizer(image) * wanted).sum().backward()
    slope = float(image.grad.norm())
    step = 0.005 * image.grad / slope
    with torch.no_grad():
        above, below = (recognizer(image + sign * step) for sign in (1, -1))
    assert float(((above - below) * wanted).sum()) / 0.01 == pytest.approx(slope, rel=0.02)


def test_weights_stay_frozen(recognizer):
    assert not recognizer.network.training
    assert not any(parameter.requires_grad for parameter in recognizer.network.parameters())


def test_same_person_scores_higher_than_another(recognizer, shared):
    """Two portraits of one person against one of another, aligned by the detector."""
    from deocc.faces import Crop, Detector, align
    from deocc.images import read_image, to_tensor

    crop = Crop(recognizer.crop_size, recognizer.crop_zoom)
    embeddings = []
    for name in ("obama.jpg", "obama3.jpg", "biden.jpg"):
        photo = read_image(shared("samples") / name)
        face = Detector().detect(photo)[0]
        embeddings.append(recognizer(to_tensor(align(photo, face.landmarks, crop)))[0])
    same, other = embeddings[0] @ embeddings[1], embeddings[0] @ embeddings[2]
    assert same > 0.5 > 0.3 > other
