"""Readers for the public data sets and for anybody's folder, and packed faces to train from.

Every reader is a :class:`Source`: a sequence of :class:`Sample` (name, path, identity, landmarks, attributes). Nothing
is downloaded: a missing file is an error that says what to download and where to put it.

>>> from deocc.data import LFW, PackedFaces, pack
>>> pack(LFW("data/lfw", split="train"), "packs/lfw-train")  # doctest: +SKIP
>>> faces = PackedFaces("packs/lfw-train")  # doctest: +SKIP
"""

from collections.abc import Callable, Mapping
from functools import partial

from deocc.data.celeba import CelebA
from deocc.data.folders import IdentityFolder, ImageFolder
from deocc.data.ijbc import IJBC
from deocc.data.lfw import LFW, Pair, read_pairs
from deocc.data.others import AR, FFHQ, MFR2, RMFRD, CASIAWebFace, VGGFace2
from deocc.data.packed import PackedFace, PackedFaces, RowView, check, concatenate
from deocc.data.packing import PackReport, pack
from deocc.data.samplers import PairedFaces, PairedSampler, UnpairedFaces, UnpairedSampler
from deocc.data.source import Sample, Source

__all__ = [
    "AR",
    "FFHQ",
    "IJBC",
    "LFW",
    "MFR2",
    "READERS",
    "RMFRD",
    "CASIAWebFace",
    "CelebA",
    "IdentityFolder",
    "ImageFolder",
    "PackReport",
    "PackedFace",
    "PackedFaces",
    "Pair",
    "PairedFaces",
    "PairedSampler",
    "RowView",
    "Sample",
    "Source",
    "UnpairedFaces",
    "UnpairedSampler",
    "VGGFace2",
    "check",
    "concatenate",
    "pack",
    "read_pairs",
]

READERS: Mapping[str, Callable[..., Source]] = {
    "folder": ImageFolder,
    "identities": IdentityFolder,
    "lfw": LFW,
    "celeba": CelebA,
    "celeba-wild": partial(CelebA, version="wild"),
    "ffhq": FFHQ,
    "rmfrd": RMFRD,
    "mfr2": MFR2,
    "casia-webface": CASIAWebFace,
    "vggface2": VGGFace2,
    "ar": AR,
    "ijbc": IJBC,
}
"""The readers by short names, for programs that let people choose; each takes the folder, and ``split`` where the data
set has parts."""
