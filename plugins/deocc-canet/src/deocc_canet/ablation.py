"""The ablation of canet (table 6): every combination of contrast, fusion and dense field, trained and compared.

``python -m deocc_canet.ablation --data PACK... --eval-data PACK... -o FOLDER [--recipe ablation] [--device cuda]``
trains eight networks, each in a folder of its own, and writes ``ablation.json`` and ``ablation.md``: hole and
whole-image PSNR and SSIM of each on the same occluded faces, and how much each differs from the whole system, face by
face. Stopped and called again, it goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

import deocc
from deocc import metrics
from deocc.config import recipe, replace
from deocc.data import PackedFaces, concatenate
from deocc.errors import DeoccError, InputError
from deocc.files import atomic_write
from deocc.images import to_tensor
from deocc.occlude import fingerprint, occlude
from deocc.plugins import get
from deocc.train import train
from deocc_canet.config import Config

SWITCHES = {"CL": "contrastive", "DAF": "architecture.fusion", "UV map": "architecture.dense_field"}
"""The columns of table 6, and what switches each."""

FIGURES = ("hole_psnr", "hole_ssim", "psnr", "ssim")
"""What is compared; higher is better."""

_BATCH = 16


def variants(base: Config) -> dict[str, tuple[dict[str, bool], Config]]:
    """The eight combinations, the whole system first: name -> (switch -> on or off, configuration)."""
    found = {}
    for states in itertools.product((True, False), repeat=len(SWITCHES)):
        on = dict(zip(SWITCHES, states, strict=True))
        name = "+".join(switch.replace(" ", "-") for switch, state in on.items() if state) or "none"
        found[name] = (on, replace(base, {SWITCHES[switch]: state for switch, state in on.items()}))
    return found


def judge(weights: Path, faces: PackedFaces, positions: np.ndarray, device: str = "cpu") -> dict[str, np.ndarray]:
    """Figures of each face, occluded by its position as the seed and restored with the occlusion given."""
    restorer = deocc.restorer("canet", weights=weights, device=device)
    values: dict[str, list[torch.Tensor]] = {name: [] for name in FIGURES}
    for start in range(0, len(positions), _BATCH):
        chosen = [int(position) for position in positions[start : start + _BATCH]]
        image = to_tensor(np.stack([faces.images[position] for position in chosen]))
        made = [occlude(np.array(faces.images[i]), faces.landmarks[i], i) for i in chosen]
        occluded = to_tensor(np.stack([one.image for one in made]))
        hole = (torch.from_numpy(np.stack([one.occlusion for one in made]))[:, None] > 0).float()
        restored = restorer(occluded, hole).image.cpu()
        for name in FIGURES:
            measure = metrics.psnr if name.endswith("psnr") else metrics.ssim
            values[name].append(measure(restored, image, where=hole if name.startswith("hole") else None))
    return {name: torch.cat(parts).double().numpy() for name, parts in values.items()}


def compare(values: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    """Mean, mean difference from the whole system over the same faces, and half its 95 % confidence interval."""
    both = np.isfinite(values) & np.isfinite(whole)
    difference = values[both] - whole[both]
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return {"mean": float(values[both].mean()), "difference": float(difference.mean()), "half_interval": float(half)}


def table(report: dict[str, dict[str, object]], faces: int) -> str:
    """The report as a table in Markdown."""
    lines = [
        f"{faces} faces; in brackets the difference from the whole system over the same faces, with its 95 % interval.",
        "",
        f"| {' | '.join(SWITCHES)} | hole PSNR | hole SSIM | PSNR | SSIM |",
        "|" + "---|" * (len(SWITCHES) + len(FIGURES)),
    ]
    for number, row in enumerate(report.values()):
        cells = ["yes" if state else "-" for state in row["on"].values()]
        for name in FIGURES:
            figure = row["figures"][name]
            digits = 2 if name.endswith("psnr") else 4
            change = f" ({figure['difference']:+.{digits}f} ± {figure['half_interval']:.{digits}f})" if number else ""
            cells.append(f"{figure['mean']:.{digits}f}{change}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="packed faces to train on")
    parser.add_argument("--eval-data", type=Path, nargs="+", required=True, help="packed faces of other people")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--recipe", default="ablation", help="what all eight share")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1")
    parser.add_argument("--faces", type=int, default=300, help="faces to compare on, evenly spaced")
    arguments = parser.parse_args(argv)
    if arguments.faces < 2:
        parser.error(f"an interval needs 2 faces or more, got --faces {arguments.faces}")
    try:
        _ablate(arguments)
    except DeoccError as error:
        sys.exit(f"{parser.prog}: {error}")


def _ablate(arguments: argparse.Namespace) -> None:
    faces = concatenate([PackedFaces(path) for path in arguments.eval_data])
    if len(faces) < 2:
        raise InputError(f"{faces.title}: an interval needs 2 faces or more, got {len(faces)}")
    positions = np.unique(np.linspace(0, len(faces) - 1, min(arguments.faces, len(faces))).astype(int))
    base = recipe(get("canet"), arguments.recipe)
    report: dict[str, dict[str, object]] = {}
    whole: dict[str, np.ndarray] = {}
    for name, (on, _) in variants(base).items():
        weights = train(
            "canet",
            data=arguments.data,
            out=arguments.out / name,
            recipe=arguments.recipe,
            overrides={SWITCHES[switch]: state for switch, state in on.items()},
            stages=["siamese", "joint"] if on["CL"] else ["joint"],  # the occlusion is given: no finder
            device=arguments.device,
        )["restorer"]
        values = judge(weights, faces, positions, arguments.device)
        whole = whole or values
        report[name] = {"on": on, "figures": {figure: compare(values[figure], whole[figure]) for figure in FIGURES}}
        print(name, {figure: round(float(np.nanmean(values[figure])), 4) for figure in FIGURES}, flush=True)
    text = table(report, len(positions))
    content = {"data": faces.title, "faces": len(positions), "masks": fingerprint(), "variants": report}
    with atomic_write(arguments.out / "ablation.json") as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    with atomic_write(arguments.out / "ablation.md") as file:
        file.write(text.encode())
    print(text)


if __name__ == "__main__":
    main()
