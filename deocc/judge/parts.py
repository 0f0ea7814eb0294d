"""The restorers and recognizers that take part: loaded, named, identified by everything that decides their output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Literal

import torch

from deocc import config as configuration
from deocc import method, plugins, weights
from deocc.errors import UsageError
from deocc.faces import Crop
from deocc.files import sha256
from deocc.judge.result import Part

Role = Literal["restorer", "recognizer", "occluder"]

__all__ = ["Loaded", "load_occluder", "load_recognizers", "load_restorers", "state_digest"]


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A part that takes part.

    Attributes:
        part: the object itself; only one thread at a time may call it, holding ``lock``.
        card: of its weights; empty without weights.
        result: how a report names it, without what is known of overlaps.
        identity: everything that decides what it computes, JSON-able.
        lock: shared by all entries with the same object.
    """

    part: Any
    card: Mapping[str, Any]
    result: Part
    identity: Mapping[str, Any]
    lock: threading.Lock

    @property
    def key(self) -> str:
        """What rows call it."""
        return self.result.key

    @property
    def crop(self) -> Crop:
        """The crop it was made for."""
        return Crop(self.part.crop_size, self.part.crop_zoom)

    @property
    def given(self) -> bool:
        """True for a restorer that is told the true occlusion."""
        return self.result.occlusion == "given"


def load_restorers(
    names: Sequence[str | method.Restorer],
    *,
    given: Sequence[str] = (),
    weight_files: Mapping[str, str | Path] | None = None,
    device: str = "cpu",
) -> list[Loaded]:
    """Load restorers, in the order given.

    Args:
        names: of installed methods, or restorers.
        given: those among ``names`` that are judged a second time, with the true occlusion given to them. Restorers
            that cannot find an occlusion are always given it.
        weight_files: name -> weights file, instead of the packaged one.
        device: where to compute.

    Raises:
        UsageError: a name twice, or one in ``given`` or ``weight_files`` that is not in ``names``; else as in
            :func:`deocc.plugins.load`.
    """
    found = []
    for one in _load(names, "restorer", weight_files or {}, device):
        if not one.part.finds_occlusion or one.key not in given:
            occlusion: Literal["found", "given"] = "found" if one.part.finds_occlusion else "given"
            found.append(_with(one, key=one.key, occlusion=occlusion))
        else:
            found.append(_with(one, key=one.key, occlusion="found"))
            found.append(_with(one, key=f"{one.key} (given)", occlusion="given"))
    unknown = sorted(set(given) - {one.key for one in found})
    if unknown:
        raise UsageError(f"the true occlusion was to be given to {unknown[0]!r}, which is none of the restorers")
    return found


def load_recognizers(
    names: Sequence[str | method.Recognizer],
    *,
    weight_files: Mapping[str, str | Path] | None = None,
    device: str = "cpu",
) -> list[Loaded]:
    """Load recognizers, in the order given; arguments and errors as in :func:`load_restorers`."""
    return _load(names, "recognizer", weight_files or {}, device)


def load_occluder(occluder: str | method.Occluder, device: str = "cpu") -> tuple[method.Occluder, str, str]:
    """An occluder, what to call it, and sixteen hex digits that change with anything that decides what it computes.

    Raises:
        UsageError: not the name of a method with an occluder, and no occluder; else as in :func:`deocc.plugins.load`.
    """
    if isinstance(occluder, str):
        one = _named(occluder, "occluder", None, device, [occluder])
    else:
        one = _object(occluder, "occluder")
    return one.part, one.key, _digest(one.identity)[:16]


def _load(names: Sequence[Any], role: Role, weight_files: Mapping[str, str | Path], device: str) -> list[Loaded]:
    found: list[Loaded] = []
    written = [name for name in names if isinstance(name, str)]
    for name in names:
        if isinstance(name, str):
            one = _named(name, role, weight_files.get(name), device, written)
        else:
            one = _object(name, role)
        if one.key in {other.key for other in found}:
            raise UsageError(f"the {role} {one.key!r} was given twice")
        found.append(one)
    return found


def _named(name: str, role: Role, file: str | Path | None, device: str, names: Collection[str]) -> Loaded:
    part: Any = plugins.load(name, role, weights=file, device=device)
    bare = name.partition(":")[0]
    path = Path(file) if file is not None else plugins.packaged_weights(plugins.get(bare), role)
    entry = next(iter(entry_points(group=plugins.GROUP, name=bare)), None)
    dist = entry.dist.metadata["Name"] if entry is not None and entry.dist is not None else ""
    return _loaded(part, role, _key(name, names), path, method=bare, distribution=dist)


def _key(name: str, names: Collection[str]) -> str:
    """What rows call a part.

    Of a path only the name, since a report says nothing about the machine, behind as many folders as tell it from the
    other names.
    """
    folders = 0
    while any(other != name and _cut(other, folders) == _cut(name, folders) for other in names):
        folders += 1
    return _cut(name, folders)


def _cut(name: str, folders: int) -> str:
    """A name with no more than so many folders in front of each of its files."""
    return re.sub(r"[^:,=]*/", lambda path: "/".join(path[0].split("/")[-folders - 1 :]), name)


def _object(part: Any, role: Role) -> Loaded:
    wanted = {"restorer": method.Restorer, "recognizer": method.Recognizer, "occluder": method.Occluder}[role]
    if not isinstance(part, wanted):
        raise UsageError(
            f"a {role} must be a method's name or a deocc.method.{wanted.__name__}, got {type(part).__name__}"
        )
    return _loaded(part, role, type(part).__name__, None, method="", distribution="")


def _loaded(part: Any, role: Role, key: str, path: Path | None, *, method: str, distribution: str) -> Loaded:
    card = {} if path is None else weights.read_card(path)
    read = [sha256(file) for file in part.files]
    named = path
    own: list[str] = []
    if path is not None:
        own = [card["sha256"]]
    elif part.network is not None:
        own = [state_digest(part.network)]
    elif read:  # the first file stands for the weights
        named = part.files[0]
    besides = list(zip(part.files, read, strict=True))[0 if own else 1 :]
    try:
        settings = configuration.to_dict(part.config)
    except UsageError:  # a part that was handed in may have any configuration
        settings = {"": repr(part.config)}
    # Of a file its content counts, and not where on this machine it lies.
    contents = {str(file): digest for file, digest in zip(part.files, read, strict=True)}
    settings = {name: contents.get(str(value), value) for name, value in settings.items()}
    result = Part(
        key=key,
        method=method,
        distribution=distribution,
        version=_version(distribution),
        role="recognizer" if role == "recognizer" else "restorer",
        weights="" if named is None else named.name,
        sha256="".join(own or read[:1]),
        files=tuple(f"{file.name} {digest}" for file, digest in besides),
        config=_digest(settings)[:16],
        size=part.crop_size,
        zoom=float(part.crop_zoom),
        data=str(card.get("data", "")),
        licence=str(card.get("licence", "")),
        notes=str(card.get("notes", "")),
        redraws_face=getattr(part, "redraws_face", False),
    )
    identity = {
        "class": f"{type(part).__module__}:{type(part).__qualname__}",
        "source": plugins.source_digest(type(part)),
        "weights": _joint([*own, *read]),
        "config": settings,
        "crop": [part.crop_size, float(part.crop_zoom)],
        "device": str(part.device),
    }
    return Loaded(part, card, result, identity, threading.Lock())


def _with(one: Loaded, *, key: str, occlusion: Literal["found", "given"]) -> Loaded:
    return dataclasses.replace(
        one,
        result=dataclasses.replace(one.result, key=key, occlusion=occlusion),
        identity={**one.identity, "occlusion": occlusion},
    )


def _joint(digests: Sequence[str]) -> str:
    """One digest of several: the only one as it is, none as nothing."""
    return _digest(digests) if len(digests) > 1 else "".join(digests)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def state_digest(network: torch.nn.Module) -> str:
    """SHA-256 of a module's state dict."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution) if distribution else ""
    except PackageNotFoundError:
        return ""
