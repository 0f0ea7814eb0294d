"""How well a recognizer verifies pairs of Labeled Faces in the Wild.

The quickest way to see whether a recognizer is fed as it was trained: a wrong template, order of channels or
normalisation costs it several points of the accuracy that is published for it. ``python -m deocc.testing.lfw NAME
FOLDER`` prints the figures, where NAME may have settings (``onnx:model.onnx``) and FOLDER holds the images and
``pairs.txt``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from deocc import plugins
from deocc.data import LFW, Pair, Sample
from deocc.errors import InputError, UsageError
from deocc.faces import Crop, Detector, align
from deocc.images import to_tensor
from deocc.method import Recognizer
from deocc.metrics.verification import Scores, fold_accuracy

__all__ = ["Verification", "lfw_verification", "main"]

_BATCH = 32


class Verification(NamedTuple):
    """What :func:`lfw_verification` returns.

    Attributes:
        accuracy: of "the same person" or "not", the threshold for a fold being the best one for the other folds.
        auc: the probability that a pair of one person scores higher than a pair of two.
        separation: d', the distance between the mean scores of the two kinds of pair, in standard deviations (the root
            of the mean of their variances). On few pairs it shows a small fault that accuracy does not.
        pairs: how many pairs were compared.
    """

    accuracy: float
    auc: float
    separation: float
    pairs: int


@torch.no_grad()
def lfw_verification(recognizer: Recognizer, root: str | os.PathLike[str], *, pairs: int | None = None) -> Verification:
    """Compare the pairs of LFW's ``pairs.txt`` by the cosine of their embeddings.

    Faces are aligned by the folder's ``landmarks.npz``; where it does not have them, the face nearest to the middle of
    the image is detected.

    Args:
        recognizer: as :func:`deocc.recognizer` returns it.
        root: the folder of LFW, see :class:`deocc.data.LFW`.
        pairs: how many, the first of each fold, as many of one person as of two; None takes all 6,000.

    Raises:
        InputError: something is missing in the folder, or a face cannot be found.
        UsageError: a number of pairs that is not a multiple of twice the number of folds.
    """
    source = LFW(root)
    chosen = _first(source.pairs(), pairs)
    names = sorted({name for pair in chosen for name in (pair.first, pair.second)})
    crop, detector = Crop(recognizer.crop_size, recognizer.crop_zoom), Detector()
    embedded = []
    for start in range(0, len(names), _BATCH):
        samples = [source[source.index(name)] for name in names[start : start + _BATCH]]
        faces = np.stack([_face(sample, crop, detector) for sample in samples])
        embedded.append(recognizer(to_tensor(faces)).double().cpu().numpy())
    embeddings, at = np.concatenate(embedded), {name: index for index, name in enumerate(names)}
    first, second = embeddings[[at[pair.first] for pair in chosen]], embeddings[[at[pair.second] for pair in chosen]]
    scores, same = (first * second).sum(axis=1), np.array([pair.same for pair in chosen])
    apart = (scores[same].mean() - scores[~same].mean()) / np.sqrt((scores[same].var() + scores[~same].var()) / 2)
    accuracies, _ = fold_accuracy(scores, same, [pair.fold for pair in chosen])
    auc = Scores(scores, same).auc()
    return Verification(float(accuracies.mean()), auc, float(apart), len(chosen))


def _first(pairs: Sequence[Pair], count: int | None) -> Sequence[Pair]:
    if count is None:
        return pairs
    folds = len({pair.fold for pair in pairs})
    if count < 2 * folds or count % (2 * folds):
        raise UsageError(
            f"the number of pairs must be a multiple of {2 * folds} (two kinds, {folds} folds), got {count}"
        )
    taken: dict[tuple[int, bool], list[Pair]] = {}
    for pair in pairs:
        taken.setdefault((pair.fold, pair.same), []).append(pair)
    return [pair for group in taken.values() for pair in group[: count // (2 * folds)]]


def _face(sample: Sample, crop: Crop, detector: Detector) -> npt.NDArray[np.uint8]:
    photo = sample.read()
    if sample.landmarks is not None:
        return align(photo, sample.landmarks, crop)
    middle = np.array(photo.shape[1::-1]) / 2
    found = sorted(detector.detect(photo), key=lambda face: float(np.linalg.norm(face.landmarks.mean(axis=0) - middle)))
    if not found:
        raise InputError(f"{sample.path}: no face was found")
    return align(photo, found[0].landmarks, crop)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of a recognizer."""
    parser = argparse.ArgumentParser(prog="python -m deocc.testing.lfw", description=lfw_verification.__doc__)
    parser.add_argument("name", help="an installed recognizer, with settings if need be: onnx:model.onnx")
    parser.add_argument("folder", help="of LFW's images and pairs.txt")
    parser.add_argument("--pairs", type=int, help="compare so many only")
    given = parser.parse_args(arguments)
    result = lfw_verification(plugins.load(given.name, "recognizer"), given.folder, pairs=given.pairs)
    print(
        f"{given.name}: accuracy {result.accuracy:.4f}, AUC {result.auc:.4f}, separation {result.separation:.3f} "
        f"on {result.pairs} pairs"
    )


if __name__ == "__main__":
    main()
