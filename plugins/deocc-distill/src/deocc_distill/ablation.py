"""The ablations of distill: the components of the loss (figure 5), and what completes the faces (table 2).

``python -m deocc_distill.ablation losses --data PACK... --eval-data PACK... --centroids FILE -o FOLDER`` trains five
students, ``... completion ...`` two for each way of completing a face, every one in a folder of its own, and writes
``losses.json`` and ``losses.md``, or ``completion.*``: the accuracy of each on the same pairs of faces, the second one
occluded. De-occlusion modules are trained first, or given with ``--restorer``. Stopped and called again, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deocc
from deocc import plugins
from deocc.data import PackedFaces, concatenate
from deocc.errors import UsageError
from deocc.faces import Crop
from deocc.files import atomic_write
from deocc.images import to_tensor
from deocc.method import Recognizer
from deocc.metrics.verification import best_threshold
from deocc.train import train
from deocc_distill.faces import OccludedFaces, recrop

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "CE": {"distillation.pair": 0.0, "distillation.triplet": 0.0, "distillation.instance": "none"},
    "CE + pair": {"distillation.triplet": 0.0, "distillation.instance": "none"},
    "CE + pair + triplet": {"distillation.instance": "none"},
    "CE + pair + triplet + hard instance": {"distillation.instance": "hard"},
    "CE + pair + triplet + soft instance": {"distillation.instance": "soft"},
}
"""The five losses of figure 5, and what makes each of the whole one."""

COMPLETIONS: Mapping[str, Mapping[str, Any]] = {
    "none": {"distillation.completion": "none"},
    "opencv-telea": {"distillation.completion": "opencv-telea"},
    "without attention": {"generator.attention": False},
    "with attention": {"generator.attention": True},
}
"""The columns of table 2. Its GFC and IDGAN cannot be had: not completing, and OpenCV's inpainting, stand there."""

STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "OUR-Hard": {"distillation.instance": "hard"},
    "OUR-Soft": {"distillation.instance": "soft"},
}
"""The rows of table 2 below the recognizer that was not distilled."""

_BATCH = 32

Complete = Callable[[Tensor, Tensor], Tensor]


def pairs_of(faces: PackedFaces, count: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pairs of positions (2 n, 2) and whether they are of one person (2 n,): n of each kind, n at most ``count`` / 2.

    Raises:
        UsageError: nobody has two faces, or there is one person alone.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(faces))
    by_identity: dict[int, list[int]] = {}
    for position in order:
        by_identity.setdefault(int(faces.identities[position]), []).append(int(position))
    by_identity.pop(-1, None)
    same = [tuple(positions[:2]) for positions in by_identity.values() if len(positions) > 1][: count // 2]
    if not same or len(by_identity) < 2:
        raise UsageError(f"{faces.title}: verification needs two people, and somebody with two faces")
    different = []
    names = list(by_identity)
    for _ in same:
        first, second = generator.choice(len(names), 2, replace=False)
        different.append((by_identity[names[first]][0], by_identity[names[second]][-1]))
    return np.array(same + different), np.repeat([True, False], len(same))


def best_accuracy(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """Share of right answers at the threshold where it is highest, as the paper decides it (section 4.2)."""
    return float(((scores >= best_threshold(scores, same)) == same).mean())


@torch.no_grad()
def score_pairs(
    recognizer: Recognizer, complete: Complete | None, faces: PackedFaces, pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cosines of pairs (n, 2) whose first face is as it is and whose second one is occluded and completed: (n,).

    ``complete`` takes occluded faces (N, 3, S, S) and their hole (N, 1, S, S); None leaves the second face as it is.
    """
    target = Crop(recognizer.crop_size, recognizer.crop_zoom)
    examples = OccludedFaces(faces, None, seed=0)

    def embed(positions: NDArray[np.int64], complete: Complete | None) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for start in range(0, len(positions), _BATCH):
            chosen = [int(position) for position in positions[start : start + _BATCH]]
            if complete is None:
                images = to_tensor(faces.images[chosen])
            else:
                items = [examples[position] for position in chosen]
                occluded = torch.stack([item["occluded"] for item in items]).float() / 255
                images = complete(occluded, torch.stack([(item["distance"] > 0).float() for item in items]))
            found |= dict(zip(chosen, recognizer(recrop(images, faces.crop, target).clamp(0, 1)), strict=True))
        return found

    known, probes = embed(np.unique(pairs[:, 0]), None), embed(np.unique(pairs[:, 1]), complete)
    return np.array([float(known[int(first)] @ probes[int(second)]) for first, second in pairs])


def _history(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The curves of figure 5: what a run logged of its losses, in training and on held-out faces."""
    lines = [json.loads(line) for line in (run / "distillation" / "log.jsonl").read_text().splitlines()]
    return {
        kind: [{"step": line["step"], **line[kind]} for line in lines if kind in line]
        for kind in ("train", "evaluation")
    }


class _Ablation:
    """What both share: the packs, the pairs, and how a network is trained with a change."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out
        self.faces = concatenate([PackedFaces(path) for path in arguments.eval_data])
        self.pairs, self.same = pairs_of(self.faces, arguments.pairs)

    def restorer(self, attention: bool) -> Path:
        """A de-occlusion module: the one given, or one that is trained here."""
        given: list[Path] = self.arguments.restorer or []
        for path in given:
            if deocc.restorer("distill", weights=path).config.generator.attention == attention:
                return path
        name = f"restorer-{'with' if attention else 'without'}"
        return self._train(name, "deocclusion", {"generator.attention": attention}, [])["restorer"]

    def student(self, name: str, changes: Mapping[str, Any], start: Sequence[Path]) -> Path:
        """A student, trained from its beginning on faces that the module in ``start`` completes."""
        base = {"distillation.centroids": str(self.arguments.centroids), "distillation.cross_entropy": 1.0}
        return self._train(name, "distillation", {**base, **changes}, start)["recognizer"]

    def _train(self, name: str, stage: str, changes: Mapping[str, Any], start: Sequence[Path]) -> dict[str, Path]:
        return train(
            "distill",
            data=self.arguments.data,
            eval_data=self.arguments.eval_data,
            out=self.out / name,
            recipe=self.arguments.recipe,
            overrides=changes,
            stages=[stage],
            start_from=start,
            device=self.arguments.device,
        )

    def accuracy(self, recognizer: Recognizer, complete: Complete) -> float:
        """On this ablation's pairs."""
        return best_accuracy(score_pairs(recognizer, complete, self.faces, self.pairs), self.same)

    def write(self, name: str, report: Mapping[str, Any], table: str) -> None:
        """Both files."""
        content = {"data": self.faces.title, "pairs": len(self.pairs), **report}
        for suffix, text in ((".json", json.dumps(content, indent=1) + "\n"), (".md", table)):
            with atomic_write(self.out / f"{name}{suffix}") as file:
                file.write(text.encode())
        print(table)


def losses(ablation: _Ablation) -> None:
    """Figure 5, as a table of where its curves end and of the accuracy that comes of them."""
    restorer = ablation.restorer(attention=True)
    device = ablation.arguments.device
    complete = _completer("distill", restorer, device)
    report: dict[str, Any] = {}
    lines = [
        f"{len(ablation.pairs)} pairs, the second face occluded and completed; the losses are those at the last step.",
        "",
        "| loss | accuracy | cosine to the teacher | instance | pair | triplet |",
        "|---|---|---|---|---|---|",
    ]
    for name, changes in LOSSES.items():
        folder = name.replace(" + ", "-").replace(" ", "-").lower()
        student = deocc.recognizer("distill", weights=ablation.student(folder, changes, [restorer]), device=device)
        curves = _history(ablation.out / folder)
        last = curves["evaluation"][-1]
        report[name] = {"accuracy": ablation.accuracy(student, complete), **curves}
        figures = (f"{last[key]:.4f}" for key in ("cosine", "hard", "pair", "triplet"))
        lines.append(f"| {name} | {100 * report[name]['accuracy']:.2f} % | {' | '.join(figures)} |")
    ablation.write("losses", {"losses": report}, "\n".join(lines) + "\n")


def completion(ablation: _Ablation) -> None:
    """Table 2: the recognizer that was not distilled and both students, on each completion."""
    report: dict[str, dict[str, float]] = {}
    device = ablation.arguments.device
    for name, changes in COMPLETIONS.items():
        method = changes.get("distillation.completion", "distill")
        start = [ablation.restorer(changes["generator.attention"])] if method == "distill" else []
        complete = _completer(method, start[0] if start else None, device)
        for row, more in STUDENTS.items():
            folder = f"{name}-{row}".replace(" ", "-").lower()
            weights = ablation.student(folder, {**changes, **more}, start)
            student = deocc.recognizer("distill", weights=weights, device=device)
            report.setdefault(row, {})[name] = ablation.accuracy(student, complete)
        teacher = plugins.load(student.config.distillation.teacher, "recognizer", device=device)
        report.setdefault("the teacher", {})[name] = ablation.accuracy(teacher, complete)
    lines = [
        f"Accuracy in % on {len(ablation.pairs)} pairs, the second face occluded and completed.",
        "",
        f"| | {' | '.join(COMPLETIONS)} |",
        "|---" * (len(COMPLETIONS) + 1) + "|",
    ]
    for row in ("the teacher", *STUDENTS):
        lines.append(f"| {row} | {' | '.join(f'{100 * report[row][name]:.2f}' for name in COMPLETIONS)} |")
    ablation.write("completion", {"accuracy": report}, "\n".join(lines) + "\n")


def _completer(method: str, weights: Path | None, device: str) -> Complete:
    if method == "none":
        return lambda occluded, hole: occluded
    restorer = deocc.restorer(method, weights=weights, device=device)
    return lambda occluded, hole: restorer(occluded, hole).image


def main(argv: Sequence[str] | None = None) -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["losses", "completion"])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="packed faces to train on")
    parser.add_argument("--eval-data", type=Path, nargs="+", required=True, help="packed faces of other people")
    parser.add_argument("--centroids", type=Path, required=True, help="of the faces to train on, by the teacher")
    parser.add_argument("--restorer", type=Path, nargs="*", help="weights of trained de-occlusion modules")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--recipe", default="ablation", help="what all share")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1")
    parser.add_argument("--pairs", type=int, default=600, help="pairs to compare on, at most")
    arguments = parser.parse_args(argv)
    {"losses": losses, "completion": completion}[arguments.which](_Ablation(arguments))


if __name__ == "__main__":
    main()
