"""The centroids of the identities in the teacher's space (eq. 18), computed off-line.

``python -m deocc_distill.centroids --data PACK... -o centroids.safetensors [--teacher mobilefacenet]`` embeds every
face with the teacher and writes the mean of each identity. Training reads it, and refuses that of another teacher.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deocc import plugins
from deocc.config import to_dict
from deocc.data import PackedFaces, concatenate
from deocc.errors import InputError, WeightsError
from deocc.faces import Crop
from deocc.files import atomic_write, sha256
from deocc.images import to_tensor
from deocc.method import Recognizer
from deocc_distill.faces import recrop

FORMAT = "deocc-distill centroids 1"


def fingerprint(recognizer: Recognizer) -> str:
    """SHA-256 of a recognizer: its class, its configuration, the content of the files it read and, where it has a
    network, all of its tensors."""
    digest = hashlib.sha256()
    kind = type(recognizer)
    # What a file holds counts, and not where it lies.
    contents = {str(path): sha256(path) for path in recognizer.files}
    settings = {name: contents.get(str(value), value) for name, value in to_dict(recognizer.config).items()}
    digest.update(json.dumps([kind.__module__, kind.__qualname__, settings, *contents.values()]).encode())
    for name, tensor in sorted(recognizer.network.state_dict().items()) if recognizer.network is not None else ():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Centroids:
    """The contents of a file.

    Attributes:
        values: (I, D) float32, the mean of the teacher's unit embeddings of each identity.
        names: of the identities.
        teacher: the method's name.
        sha256: :func:`fingerprint` of the teacher.
    """

    values: Tensor
    names: tuple[str, ...]
    teacher: str
    sha256: str

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        about = {"format": FORMAT, "teacher": self.teacher, "sha256": self.sha256, "names": self.names}
        # One entry: safetensors writes several in any order, and the same centroids should be the same file.
        data = safetensors.torch.save({"centroids": self.values.contiguous()}, {"about": json.dumps(about)})
        with atomic_write(path) as file:
            file.write(data)

    @classmethod
    def load(cls, path: str | Path, recognizer: Recognizer) -> Centroids:
        """Read a file.

        Args:
            path: what :meth:`save` wrote.
            recognizer: the teacher to be used.

        Raises:
            WeightsError: the file cannot be read, or was computed with another teacher.
        """
        try:
            with safetensors.safe_open(str(path), "pt") as file:
                about, values = json.loads((file.metadata() or {})["about"]), file.get_tensor("centroids")
            if about["format"] != FORMAT:
                raise WeightsError(f"{path}: wanted {FORMAT!r}, got {about['format']!r}")
            found = cls(values, tuple(about["names"]), about["teacher"], about["sha256"])
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{path}: cannot be read as centroids ({error})") from error
        wanted = fingerprint(recognizer)
        if found.sha256 != wanted:
            raise WeightsError(
                f"{path}: these centroids were computed with a teacher ({found.teacher}) of sha256 "
                f"{found.sha256[:16]}, and the teacher here has {wanted[:16]}; compute them again with "
                "python -m deocc_distill.centroids"
            )
        return found

    def rows(self, faces: PackedFaces) -> np.ndarray:
        """The row of each face's identity, (N,).

        Raises:
            InputError: an identity that the file does not have, or a face that belongs to nobody.
        """
        place = {name: row for row, name in enumerate(self.names)}
        if (faces.identities < 0).any():
            raise InputError(f"{faces.title}: centroids need an identity for each face, and some have none")
        used = np.unique(faces.identities)
        missing = [faces.identity_names[number] for number in used if faces.identity_names[number] not in place]
        if missing:
            raise InputError(
                f"{faces.title}: {len(missing)} of its identities (such as {missing[0]!r}) have no centroid "
                f"in the file, which has such as {self.names[0]!r}; compute the centroids from the same packs (of "
                "several packs, a name begins with the folder's)"
            )
        row_of = np.full(len(faces.identity_names), -1)
        row_of[used] = [place[faces.identity_names[number]] for number in used]
        return row_of[faces.identities]


@torch.no_grad()
def compute(
    faces: PackedFaces, teacher: str, recognizer: Recognizer, say: Callable[[int], None] = lambda done: None
) -> Centroids:
    """The centroids of packed faces.

    Args:
        faces: the training faces; each must belong to somebody.
        teacher: the recognizer's method.
        recognizer: the teacher.
        say: called with the number of faces done.

    Raises:
        InputError: a face that belongs to nobody, or two identities of one name.
    """
    if (faces.identities < 0).any():
        raise InputError(f"{faces.title}: centroids need an identity for each face, and some have none")
    numbers, place = np.unique(faces.identities, return_inverse=True)
    target = Crop(recognizer.crop_size, recognizer.crop_zoom)
    total: Tensor | None = None
    for start in range(0, len(faces), 64):
        images = to_tensor(np.asarray(faces.images[start : start + 64])).to(recognizer.device)
        embedding = recognizer(recrop(images, faces.crop, target).clamp(0, 1)).double().cpu()
        if total is None:
            total = torch.zeros(len(numbers), embedding.shape[1], dtype=torch.float64)
        total.index_add_(0, torch.from_numpy(place[start : start + 64]), embedding)
        say(min(start + 64, len(faces)))
    if total is None:
        raise InputError(f"{faces.title} holds no faces")
    counts = torch.from_numpy(np.bincount(place))[:, None]
    names = tuple(faces.identity_names[number] for number in numbers)
    if len(set(names)) < len(names):
        raise InputError(f"{faces.title}: several packs have the same folder's name, and an identity in common")
    return Centroids((total / counts).float(), names, teacher, fingerprint(recognizer))


def main(argv: Sequence[str] | None = None) -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="packed faces to train on, in this order")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the file, .safetensors")
    parser.add_argument("--teacher", default="mobilefacenet", help="the method whose recognizer is the teacher")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    faces = concatenate([PackedFaces(path) for path in arguments.data])
    recognizer = plugins.load(arguments.teacher, "recognizer", device=arguments.device)

    def say(done: int) -> None:
        print(f"\r{done}/{len(faces)}", end="", flush=True)

    found = compute(faces, arguments.teacher, recognizer, say)
    found.save(arguments.out)
    print(f"\r{arguments.out}: {len(found.names)} identities of {len(faces)} faces, teacher {found.sha256[:16]}")


if __name__ == "__main__":
    main()
