"""Morphable models: the fit against known poses and shapes, the readers, real faces where the data folder is."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deocc.errors import InputError, MissingDependencyError
from deocc.faces import Crop, Detector, FaceMesh, MorphableModel, dense_field, face_model
from deocc.faces.morphable import _MESH_POINTS
from deocc.images import read_image

PORTRAIT = min((Path(__file__).parents[2] / "deocc" / "portraits").glob("*.jpg"))


def parts(seed: int = 0, shapes: int = 4, expressions: int = 2) -> dict[str, Any]:
    """A model about the canonical mesh, with smooth random components; its landmarks are the mesh's own points."""
    mesh = FaceMesh()
    rng = np.random.default_rng(seed)
    mean = mesh.vertices * np.float32(10)
    directions = rng.normal(0, 0.02, (shapes + expressions, 3, 3))
    components = 0.5 * np.einsum("vi,kij->kvj", mean, directions) + rng.normal(0, 0.5, (shapes + expressions, 1, 3))
    return {
        "mean": mean,
        "shapes": components[:shapes],
        "expressions": components[shapes:],
        "triangles": mesh.triangles,
        "landmarks": dict(_MESH_POINTS),
    }


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


@pytest.mark.parametrize("pose", [(0, 0, 0), (40, 10, -15), (-60, -20, 30)])
def test_a_known_pose_and_face_are_found_again(pose: tuple[float, float, float]) -> None:
    made = parts()
    model = MorphableModel(**made)
    weights = np.array([1.0, -0.7, 0.4, 0.2, 0.8, -0.3])
    face = made["mean"] + np.tensordot(weights, np.concatenate([made["shapes"], made["expressions"]]), 1)
    seen = 0.9 * face @ rotation(*pose).T
    seen = np.column_stack([seen[:, 0] + 200, 150 - seen[:, 1], -seen[:, 2]])
    placed = model.fit_points(seen[list(model.landmarks.values()), :2].astype(np.float32))
    assert placed.dtype == np.float32
    error = placed - seen
    assert np.abs(error[:, :2]).max() < 0.02 * np.ptp(seen[:, 1])
    # Where along the line of sight the face is cannot be seen, how it recedes can.
    depth = error[:, 2] - error[:, 2].mean()
    assert np.abs(depth).max() < 0.1 * np.ptp(seen[:, 2])


def test_without_components_it_is_a_rigid_face() -> None:
    made = parts(shapes=0, expressions=0)
    model = MorphableModel(**made)
    points = made["mean"][list(model.landmarks.values()), :2] * [2, -2] + [10, 20]
    np.testing.assert_allclose(model.fit_points(points)[:, :2], made["mean"][:, :2] * [2, -2] + [10, 20], atol=1e-3)


def test_an_unlikely_face_is_not_believed() -> None:
    """Landmarks that no face has are not followed: the coefficients stay within a few standard deviations."""
    model = MorphableModel(**parts())
    rng = np.random.default_rng(0)
    placed = model.fit_points(rng.normal(100, 50, (len(model.landmarks), 2)))
    assert np.isfinite(placed).all()
    assert np.ptp(placed[:, :2], axis=0).max() < 1000


def test_of_a_real_face_it_is_about_what_the_mesh_gives() -> None:
    photo = read_image(PORTRAIT)
    landmarks = Detector().detect(photo)[0].landmarks
    model, crop = MorphableModel(**parts()), Crop(128, 0.75)
    field, mesh = dense_field(photo, landmarks, model, crop), dense_field(photo, landmarks, None, crop)
    both = field.covered & mesh.covered
    assert both.sum() > 0.85 * (field.covered | mesh.covered).sum()
    assert np.abs(field.field - mesh.field)[:, both].mean() < 0.03
    again = dense_field(photo, landmarks, pickle.loads(pickle.dumps(model)), crop)
    np.testing.assert_array_equal(again.field, field.field)
    assert model.fit(np.zeros((128, 128, 3), np.uint8), crop.template()) is None


def test_triangles_come_to_face_outwards() -> None:
    made = parts()
    turned = MorphableModel(**(made | {"triangles": made["triangles"][:, ::-1]}))
    np.testing.assert_array_equal(turned.triangles, MorphableModel(**made).triangles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros((5, 2))}, r"mean must have shape \(any, 3\), got \(5, 2\)"),
        ({"mean": np.zeros((468, 3))}, "must have an extent along x, y and z"),
        ({"shapes": np.zeros((4, 5, 3))}, r"shapes must have shape \(any, 468, 3\), got \(4, 5, 3\)"),
        ({"expressions": np.full((1, 468, 3), np.nan)}, "expressions must be finite numbers, got float64"),
        ({"triangles": np.array([[0, 1, 468]])}, "triangles must be numbers of its 468 vertices"),
        ({"triangles": np.empty((0, 3), int)}, "triangles must be numbers of its 468 vertices"),
        ({"landmarks": {31: 4, 1: 2, 8: 5}}, r"needs 6 landmarks of the iBUG 68 \(9 and 18 to 68\) or more, got 1"),
        ({"landmarks": dict.fromkeys(range(30, 40), 468)}, "landmarks must be numbers of its 468 vertices, got 468"),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MorphableModel(**(parts() | change))


def test_points_that_do_not_fit() -> None:
    model = MorphableModel(**parts())
    with pytest.raises(InputError, match=r"must be a floating point array \(52, 2\), got list"):
        model.fit_points([1.0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(52, 2\), got float64 \(5, 2\)"):
        model.fit_points(np.zeros((5, 2)))
    for bad in (np.zeros((52, 2)), np.full((52, 2), np.nan)):
        with pytest.raises(InputError, match="must be finite and lie apart"):
            model.fit_points(bad)


# Files -------------------------------------------------------------------------------------------------------------


def flat(values: np.ndarray) -> np.ndarray:
    """(K, V, 3) -> (3V, K), as the files have it."""
    return values.reshape(len(values), -1).T


def same(model: MorphableModel, made: dict[str, Any], expressions: bool = True) -> None:
    np.testing.assert_allclose(model.mean, made["mean"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.shapes, made["shapes"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.triangles, made["triangles"])
    if expressions:
        np.testing.assert_allclose(model.expressions, made["expressions"], rtol=1e-4, atol=1e-5)
    else:
        assert model.expressions.shape == (0, 468, 3)


def write_npz(path: Path, made: dict[str, Any], **change: Any) -> Path:
    values = {
        "mean": made["mean"].ravel(),
        "shape_basis": flat(made["shapes"]) / 2,
        "shape_eigenvalues": np.full(len(made["shapes"]), 4.0),
        "blendshapes": made["expressions"].reshape(len(made["expressions"]), -1),
        "triangles": made["triangles"],
        "landmark_68_index": np.array(list(made["landmarks"])),
        "landmark_vertex": np.array(list(made["landmarks"].values())),
    }
    np.savez(path, **{key: value for key, value in (values | change).items() if value is not None})
    return path


def test_npz(tmp_path: Path) -> None:
    made = parts()
    path = write_npz(tmp_path / "model.npz", made)
    model = MorphableModel.read(path)
    same(model, made)
    assert model.landmarks == made["landmarks"]
    assert model.title.startswith("model.npz ")
    other = face_model(str(write_npz(tmp_path / "two.npz", parts(1))))
    assert other.title.split()[1] != model.title.split()[1]
    (tmp_path / "model.npz.landmarks.json").write_text(json.dumps({str(n): n for n in range(20, 30)}))
    assert MorphableModel.read(path).landmarks == {n: n for n in range(20, 30)}
    assert MorphableModel.read(path, dict.fromkeys(range(40, 50), 1)).landmarks == dict.fromkeys(range(40, 50), 1)
    (tmp_path / "model.npz.landmarks.json").write_text("[1]")
    with pytest.raises(InputError, match=r"model.npz.landmarks.json must be a JSON object such as"):
        MorphableModel.read(path)


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(name: str, array: np.ndarray, kind: int) -> bytes:
    flags = element(6, struct.pack("<II", 6, 0))
    shape = element(5, struct.pack(f"<{array.ndim}i", *array.shape))
    short = name.encode()
    # A name of up to four letters stands in its tag.
    named = struct.pack("<HH", 1, len(short)) + short.ljust(4, b"\0") if len(short) <= 4 else element(1, short)
    return element(14, flags + shape + named + element(kind, array.tobytes(order="F")))


def write_mat(path: Path, made: dict[str, Any], compressed: bool, leave_out: str = "") -> Path:
    variables = {
        "texPC": (np.zeros((30, 2), "<f4"), 7),
        "shapeMU": (made["mean"].reshape(-1, 1).astype("<f4"), 7),
        "shapePC": ((flat(made["shapes"]) / 2).astype("<f4"), 7),
        "shapeEV": (np.full((len(made["shapes"]), 1), 2.0), 9),
        "tl": ((made["triangles"][:, ::-1] + 1).astype("<u2"), 4),  # as MATLAB packs whole doubles
    }
    data = b"MATLAB 5.0 MAT-file, made for a test".ljust(124) + b"\x00\x01IM"
    for name, (array, kind) in variables.items():
        if name != leave_out:
            written = matrix(name, array, kind)
            packed = zlib.compress(written)
            data += struct.pack("<II", 15, len(packed)) + packed if compressed else written
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_basel_2009(tmp_path: Path, compressed: bool) -> None:
    made = parts()
    path = write_mat(tmp_path / "01_MorphableModel.mat", made, compressed)
    same(MorphableModel.read(path, made["landmarks"]), made, expressions=False)
    with pytest.raises(InputError, match=r"has no landmarks, give them in 01_MorphableModel.mat.landmarks.json"):
        MorphableModel.read(path)
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    with pytest.raises(InputError, match="is damaged"):
        MorphableModel.read(path, made["landmarks"])
    write_mat(path, made, compressed, leave_out="shapePC")
    with pytest.raises(InputError, match="lacks the variable shapePC"):
        MorphableModel.read(path, made["landmarks"])


def test_basel_2009_as_scipy_writes_it(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    made = parts()
    values = {"texMU": np.zeros(5), "shapeMU": made["mean"].reshape(-1, 1), "shapePC": flat(made["shapes"]) / 2}
    values |= {"shapeEV": np.full((4, 1), 2.0), "tl": made["triangles"].astype(float) + 1, "note": "text"}
    for compressed in (False, True):
        io.savemat(tmp_path / "model.mat", values, do_compression=compressed)
        same(MorphableModel.read(tmp_path / "model.mat", made["landmarks"]), made, expressions=False)


def test_basel_2017(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    made = parts()
    names = {"center.nose.tip": 4, "right.eye.corner_outer": 33, "right.eye.corner_inner": 133, "left.lips.corner": 291}
    names |= {"left.eye.corner_inner": 362, "left.eye.corner_outer": 263, "right.lips.corner": 61, "left.ear": 454}
    places = [{"id": name, "coordinates": made["mean"][vertex].tolist()} for name, vertex in names.items()]
    path = tmp_path / "model2017-1_face12_nomouth.h5"
    with h5py.File(path, "w") as file:
        file["shape/model/mean"] = made["mean"].ravel() * 0.75
        file["expression/model/mean"] = made["mean"].ravel() * 0.25
        for name, values in (("shape", made["shapes"]), ("expression", made["expressions"])):
            file[f"{name}/model/pcaBasis"] = flat(values) / 2
            file[f"{name}/model/pcaVariance"] = np.full(len(values), 4.0)
        file["shape/representer/cells"] = made["triangles"].T
        file["metadata/landmarks/json"] = np.frombuffer(json.dumps(places).encode(), np.int8)
    model = MorphableModel.read(path)
    same(model, made)
    wanted = {31: 4, 37: 33, 40: 133, 43: 362, 46: 263, 49: 61, 55: 291}
    assert model.landmarks == wanted
    path.write_bytes(b"no such thing")
    with pytest.raises(InputError, match="is no morphable model that deocc reads"):
        MorphableModel.read(path)


def test_without_h5py_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(MissingDependencyError, match="needs h5py, which is not installed: pip install h5py"):
        MorphableModel.read(tmp_path / "model.h5")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"", "is no morphable model that deocc reads"),
        ("a.npz", b"PK\x03\x04 and nothing", "is no morphable model that deocc reads"),
        ("a.mat", b"x" * 200, "is not a little-endian MATLAB file of level 5"),
        ("a.mat", b"MATLAB 7.3 MAT-file".ljust(200), "is a MATLAB 7.3 file"),
        ("a.mat", b"MATLAB 5.0".ljust(126) + b"IM" + b"\xff" * 40, "is damaged"),
        ("a.obj", b"v 0 0 0", "must be a morphable model with the suffix .npz, .mat, .h5"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        face_model(str(tmp_path / name))
    with pytest.raises(InputError, match="cannot be read"):
        MorphableModel.read(tmp_path / f"other-{name}")


def test_npz_that_lacks_or_spoils_something(tmp_path: Path) -> None:
    made = parts()
    path = write_npz(tmp_path / "model.npz", made, triangles=None)
    with pytest.raises(InputError, match=r"model.npz is no morphable model that deocc reads \(.*triangles"):
        MorphableModel.read(path)
    write_npz(path, made, triangles=made["triangles"] + 1)
    with pytest.raises(InputError, match=r"model.npz: a morphable model's triangles must be numbers"):
        MorphableModel.read(path)
    write_npz(path, made, mean=np.array([{}]))
    with pytest.raises(InputError, match="is no morphable model that deocc reads"):
        MorphableModel.read(path)


def test_surrey_on_lfw(shared: Callable[[str], Path]) -> None:
    model = MorphableModel.read(shared("geometry/surrey_face_model_3448.npz"))
    root = shared("faces/lfw")
    given = np.load(root / "landmarks.npz")
    mesh, residuals = FaceMesh(), []
    for number in np.random.default_rng(0).choice(len(given["names"]), 20, replace=False):
        points = mesh.fit(read_image(root / str(given["names"][number])), given["lm5"][number])
        if points is None:
            continue
        wanted = points[[_MESH_POINTS[n] for n in model.landmarks], :2]
        placed = model.fit_points(wanted)[list(model.landmarks.values()), :2]
        eyes = np.linalg.norm(given["lm5"][number][1] - given["lm5"][number][0])
        residuals.append(np.linalg.norm(placed - wanted, axis=1).mean() / eyes)
    assert np.mean(residuals) < 0.035
