"""Judge distill on faces whose identities no training saw; writes results/test.json and results/first24.png.

    deocc data pack lfw -o packs/lfw-test --kind lfw --split test
    python plugins/deocc-distill/evaluate.py packs/lfw-test --pairs lfw/pairs.txt

Completion: PSNR and SSIM inside the occlusion, given and found. Recognition: the second face of each pair is occluded
by the protocol of section 4.1 (seed = its position) and left so, or completed where the occlusion is given, or found;
teacher and student tell the pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from deocc_distill.ablation import best_accuracy, score_pairs
from deocc_distill.faces import OccludedFaces

import deocc
from deocc import metrics
from deocc.data import PackedFaces, read_pairs
from deocc.files import atomic_write
from deocc.images import to_uint8, write_image
from deocc.method import Restorer
from deocc.report import contact_sheet

RESULTS = Path(__file__).parent / "results"
BATCH = 16


def examples(faces: PackedFaces, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True faces, occluded ones, and the holes of 0 and 1."""
    items = [OccludedFaces(faces, None, seed=0)[position] for position in positions]
    image, occluded = (torch.stack([item[name] for item in items]).float() / 255 for name in ("image", "occluded"))
    return image, occluded, torch.stack([(item["distance"] > 0).float() for item in items])


def quality(faces: PackedFaces, restorer: Restorer, count: int) -> dict[str, dict[str, float]]:
    """Mean PSNR and SSIM inside the true occlusion on evenly spaced faces, and how well it is found."""
    rows: dict[str, dict[str, list[torch.Tensor]]] = {}
    chosen = np.linspace(0, len(faces) - 1, min(count, len(faces))).astype(int).tolist()
    for start in range(0, len(chosen), BATCH):
        image, occluded, hole = examples(faces, chosen[start : start + BATCH])
        with torch.no_grad():
            for name, restored in (("given", restorer(occluded, hole)), ("found", restorer(occluded))):
                row = rows.setdefault(name, {"psnr": [], "ssim": [], "iou": []})
                row["psnr"].append(metrics.psnr(restored.image, image, where=hole))
                row["ssim"].append(metrics.ssim(restored.image, image, where=hole))
                row["iou"].append(metrics.occlusion_iou(restored.occlusion, hole))
    return {
        name: {key: round(float(torch.cat(values).nanmean()), 4) for key, values in row.items()}
        for name, row in rows.items()
    }


def recognition(faces: PackedFaces, restorer: Restorer, pairs_file: Path, limit: int) -> dict[str, object]:
    """Accuracy at the best threshold, AUC and true positive rate of teacher and student."""
    position = {name: i for i, name in enumerate(faces.names)}
    pairs = [pair for pair in read_pairs(pairs_file) if pair.first in position and pair.second in position]
    pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).astype(int)]
    places = np.array([(position[pair.first], position[pair.second]) for pair in pairs])
    same = np.array([pair.same for pair in pairs])
    student = deocc.recognizer("distill")
    teacher_name = student.config.distillation.teacher
    completions = {
        "unmasked": None,
        "masked": lambda occluded, hole: occluded,
        "completed, occlusion given": lambda occluded, hole: restorer(occluded, hole).image,
        "completed, occlusion found": lambda occluded, hole: restorer(occluded).image,
    }
    table: dict[str, object] = {"pairs": len(pairs)}
    for name, recognizer in ((f"teacher ({teacher_name})", deocc.recognizer(teacher_name)), ("student", student)):
        for state, complete in completions.items():
            scores = score_pairs(recognizer, complete, faces, places)
            impostors = np.sort(scores[~same])
            table[f"{name}, {state}"] = {
                "accuracy": round(best_accuracy(scores, same), 4),
                "auc": round(float((scores[same][:, None] > impostors).mean()), 4),
                "tpr at fpr 0.01": round(float((scores[same] > impostors[-max(1, len(impostors) // 100)]).mean()), 4),
            }
            print(name, state, table[f"{name}, {state}"], flush=True)
    return table


def sheet(faces: PackedFaces, restorer: Restorer, count: int = 24) -> np.ndarray:
    """The first faces of the pack: original, occluded, found, coarse, restored. Nothing is selected."""
    image, occluded, _ = examples(faces, list(range(count)))
    with torch.no_grad():
        restored = restorer(occluded)
    found = restored.occlusion.expand(-1, 3, -1, -1)
    coarse = occluded + found * (restored.extras["coarse"] - occluded)
    columns = [to_uint8(tensor.clamp(0, 1)) for tensor in (image, occluded, found, coarse, restored.image)]
    rows = [[column[i] for column in columns] for i in range(count)]
    half = count // 2
    labels = ["original", "occluded", "found", "coarse", "restored"] * 2
    return contact_sheet([rows[i] + rows[i + half] for i in range(half)], columns=labels)


def main() -> None:
    """Write results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="packed test faces")
    parser.add_argument("--pairs", type=Path, help="LFW's pairs.txt")
    parser.add_argument("--limit", type=int, default=10_000, help="so many faces, and pairs, evenly spaced")
    arguments = parser.parse_args()
    faces, restorer = PackedFaces(arguments.pack), deocc.restorer("distill")
    results: dict[str, object] = {"data": faces.title, "completion": quality(faces, restorer, arguments.limit)}
    print(results["completion"], flush=True)
    if arguments.pairs:
        results["recognition"] = recognition(faces, restorer, arguments.pairs, arguments.limit)
    RESULTS.mkdir(exist_ok=True)
    with atomic_write(RESULTS / "test.json") as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    write_image(RESULTS / "first24.png", sheet(faces, restorer), overwrite=True)


if __name__ == "__main__":
    main()
