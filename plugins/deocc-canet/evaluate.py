"""Judge canet on faces whose identities no training saw, against OpenCV's inpainting; writes results/.

    deocc data pack lfw -o packs/lfw-test --kind lfw --split test
    python plugins/deocc-canet/evaluate.py packs/lfw-test --pairs lfw/pairs.txt --matcher matcher.onnx

Every face of the pack (or ``--limit`` of them) gets one occlusion (seed = its position). Restoring is judged inside the
occlusion (PSNR, SSIM).
Then, with ``--pairs``, the second face of each pair is masked, and the pair is scored unmasked (TT), masked (MT) and
with the masked face restored (UT), by the packaged matcher and by ``--matcher``: an ONNX network that takes RGB 0..255
faces on the 112x112 template and that no training saw.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import deocc
from deocc import metrics
from deocc.data import PackedFaces, read_pairs
from deocc.faces import Crop
from deocc.files import atomic_write
from deocc.images import to_tensor, to_uint8, write_image
from deocc.occlude import fingerprint, occlude
from deocc.report import contact_sheet

MASKS = ("surgical", "n95", "kn95", "cloth")
RESULTS = Path(__file__).parent / "results"
BATCH = 16


def masked(faces: PackedFaces, position: int, kinds: tuple[str, ...] | None = None) -> tuple[Tensor, Tensor, str]:
    """The occluded face (1, 3, S, S), its occlusion (1, 1, S, S) and the kind of occluder."""
    made = occlude(np.ascontiguousarray(faces.images[position]), faces.landmarks[position], position, kinds=kinds)
    return to_tensor(made.image), torch.from_numpy(made.occlusion)[None, None].float() / 255, made.parameters["kind"]


def quality(faces: PackedFaces, limit: int | None) -> dict[str, object]:
    """Mean PSNR and SSIM inside the true occlusion, for each restorer and each kind of occluder."""
    restorers = {
        "canet, occlusion found": (deocc.restorer("canet"), False),
        "canet, occlusion given": (deocc.restorer("canet"), True),
        "opencv-telea, occlusion given": (deocc.restorer("opencv-telea"), True),
        "opencv-ns, occlusion given": (deocc.restorer("opencv-ns"), True),
    }
    rows: dict[str, list[dict[str, float | str]]] = {name: [] for name in restorers}
    count = min(len(faces), limit or len(faces))
    chosen = np.linspace(0, len(faces) - 1, count).astype(int)
    for start in range(0, count, BATCH):
        positions = [int(position) for position in chosen[start : start + BATCH]]
        images = to_tensor(faces.images[positions])
        parts = [masked(faces, position) for position in positions]
        occluded, occlusion = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        hole = (occlusion > 0).float()
        for name, (restorer, given) in restorers.items():
            restored = restorer(occluded, hole if given else None)
            figures = {
                "psnr": metrics.psnr(restored.image, images, where=hole),
                "ssim": metrics.ssim(restored.image, images, where=hole),
                "iou": metrics.occlusion_iou(restored.occlusion, hole),
            }
            for i, part in enumerate(parts):
                rows[name].append({"kind": part[2], **{key: float(value[i]) for key, value in figures.items()}})
    kinds = sorted({str(row["kind"]) for row in rows["canet, occlusion found"]})
    table: dict[str, object] = {"faces": count, "masks": fingerprint()}
    for name, list_ in rows.items():
        table[name] = {
            kind: {
                "faces": len(group),
                **{key: round(float(np.nanmean([row[key] for row in group])), 4) for key in ("psnr", "ssim", "iou")},
            }
            for kind in ("all", *kinds)
            if (group := [row for row in list_ if kind in ("all", row["kind"])])
        }
    return table


def crop_for_matcher(images: Tensor, faces: PackedFaces) -> np.ndarray:
    """Faces (N, 3, S, S) of the pack's crop -> uint8 (N, 112, 112, 3) on the ArcFace template."""
    matrix = Crop(112, 1.0).matrix(faces.crop.template())
    return np.stack([cv2.warpAffine(image, matrix, (112, 112), flags=cv2.INTER_CUBIC) for image in to_uint8(images)])


def embed_onnx(path: Path, crops: np.ndarray) -> np.ndarray:
    """Unit embeddings (N, D) by an ONNX network that takes RGB 0..255."""
    network = cv2.dnn.readNetFromONNX(str(path))
    found = []
    for crop in crops:
        network.setInput(cv2.dnn.blobFromImage(crop))
        found.append(network.forward().ravel().copy())
    embeddings = np.stack(found)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def embed_packaged(crops: np.ndarray) -> np.ndarray:
    """Unit embeddings (N, D) by the packaged MobileFaceNet, which training used."""
    recognizer = deocc.recognizer("mobilefacenet")
    with torch.no_grad():
        return torch.cat([recognizer(to_tensor(crops[i : i + 64])) for i in range(0, len(crops), 64)]).numpy()


def verification(faces: PackedFaces, pairs_file: Path, matcher: Path | None) -> dict[str, object]:
    """AUC and true positive rates of TT, MT and UT, for each matcher."""
    position = {name: i for i, name in enumerate(faces.names)}
    pairs = [pair for pair in read_pairs(pairs_file) if pair.first in position and pair.second in position]
    same = np.array([pair.same for pair in pairs])
    first = sorted({position[pair.first] for pair in pairs})
    second = sorted({position[pair.second] for pair in pairs})
    restorer = deocc.restorer("canet")

    def crops(positions: list[int], state: str) -> np.ndarray:
        found = []
        for start in range(0, len(positions), BATCH):
            chosen = positions[start : start + BATCH]
            if state == "T":
                images = to_tensor(faces.images[chosen])
            else:
                images = torch.cat([masked(faces, i, MASKS)[0] for i in chosen])
                if state == "U":
                    images = restorer(images).image
            found.append(crop_for_matcher(images, faces))
        return np.concatenate(found)

    gallery, probes = crops(first, "T"), {state: crops(second, state) for state in "TMU"}
    matchers = {"mobilefacenet (used in training)": embed_packaged}
    if matcher is not None:
        matchers[f"{matcher.stem} (not seen in training)"] = lambda images: embed_onnx(matcher, images)
    at_first, at_second = ({p: i for i, p in enumerate(where)} for where in (first, second))
    a = [at_first[position[pair.first]] for pair in pairs]
    b = [at_second[position[pair.second]] for pair in pairs]
    table: dict[str, object] = {"pairs": len(pairs), "masks": fingerprint(MASKS)}
    for name, embed in matchers.items():
        known = embed(gallery)
        table[name] = {}
        for state, images in probes.items():
            scores = (known[a] * embed(images)[b]).sum(1)
            impostors = np.sort(scores[~same])
            rates = {
                f"tpr at fpr {rate:g}": float((scores[same] > impostors[-max(1, round(rate * len(impostors)))]).mean())
                for rate in (0.01, 0.001)
            }
            wins = (scores[same][:, None] > impostors).mean() + 0.5 * (scores[same][:, None] == impostors).mean()
            table[name][f"{state}T"] = {"auc": round(float(wins), 4), **{k: round(v, 4) for k, v in rates.items()}}
    return table


def sheet(faces: PackedFaces, count: int = 24) -> np.ndarray:
    """The first faces of the pack: original, occluded, found, restored (found), Telea (given). Nothing is selected."""
    canet, telea = deocc.restorer("canet"), deocc.restorer("opencv-telea")
    rows = []
    for i in range(count):
        occluded, occlusion, _ = masked(faces, i)
        restored = canet(occluded)
        inpainted = telea(occluded, (occlusion > 0).float()).image
        found = restored.occlusion.expand(-1, 3, -1, -1)
        tensors = (to_tensor(faces.images[i]), occluded, found, restored.image, inpainted)
        rows.append([to_uint8(tensor)[0] for tensor in tensors])
    half = count // 2
    labels = ["original", "occluded", "found", "restored", "Telea"] * 2
    return contact_sheet([rows[i] + rows[i + half] for i in range(half)], columns=labels)


def main() -> None:
    """Write results/test.json and results/first24.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="packed test faces")
    parser.add_argument("--pairs", type=Path, help="LFW's pairs.txt")
    parser.add_argument("--matcher", type=Path, help="ONNX matcher that no training saw")
    parser.add_argument("--limit", type=int, help="judge the quality of so many faces only, evenly spaced")
    arguments = parser.parse_args()
    faces = PackedFaces(arguments.pack)
    if faces.crop != Crop(128, 0.75):
        parser.error(f"{arguments.pack} must hold crops of 128 pixels and zoom 0.75, got {faces.crop}")
    results: dict[str, object] = {"data": faces.title, "quality": quality(faces, arguments.limit)}
    if arguments.pairs:
        results["verification"] = verification(faces, arguments.pairs, arguments.matcher)
    RESULTS.mkdir(exist_ok=True)
    with atomic_write(RESULTS / "test.json") as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    write_image(RESULTS / "first24.png", sheet(faces), overwrite=True)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
