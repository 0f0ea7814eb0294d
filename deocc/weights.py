"""Weights files: safetensors with a JSON card beside them. Pickles are never loaded.

``canet.safetensors`` has its card in ``canet.json``. The card holds at least the keys of :data:`CARD_KEYS`:

=========  ============================================================================
method     the method whose weights these are
part       ``"restorer"``, ``"occluder"`` or ``"recognizer"``
config     the configuration that builds the part's network, as :func:`deocc.config.to_dict` gives it
data       what it was trained on
recipe     the recipe, and what was changed of it
commit     the commit of the code that trained it
licence    the licence of the weights
sha256     of the safetensors file; :func:`save` writes it
scores     name -> figure
notes      anything else
=========  ============================================================================

``deocc.train`` adds more, ``people`` among it: digests of the identities trained on (:mod:`deocc.data.people`), by
which ``deocc judge`` tells whether somebody is tested who was trained on.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deocc.errors import UsageError, WeightsError
from deocc.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CARD_KEYS", "card_path", "fill", "read", "read_card", "save"]

CARD_KEYS = ("method", "part", "config", "data", "recipe", "commit", "licence", "sha256", "scores", "notes")
"""The keys that every card has."""

_EMPTY: dict[str, Any] = {"data": "", "recipe": "", "commit": "", "licence": "", "scores": {}, "notes": ""}


def card_path(path: str | Path) -> Path:
    """Where the card of a weights file is: the same name with the suffix ``.json``."""
    return Path(path).with_suffix(".json")


def save(path: str | Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write weights and their card, each whole or not at all; existing ones are replaced.

    Args:
        path: a ``.safetensors`` file; the card goes beside it.
        tensors: a state dict, in the dtypes to be stored.
        card: must hold ``method``, ``part`` and ``config``; other keys of :data:`CARD_KEYS` are written empty where
            they are missing, and ``sha256`` is computed here.

    Raises:
        UsageError: another suffix, or a card without one of those keys.
    """
    import safetensors.torch

    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: weights are written as .safetensors, got the suffix {path.suffix!r}")
    missing = [key for key in ("method", "part", "config") if card.get(key) in (None, "")]
    if missing:
        raise UsageError(f"{path}: the card of these weights lacks {', '.join(missing)}")
    # The clone separates tensors that share storage, which safetensors cannot express.
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )
    full = {**_EMPTY, **card, "sha256": hashlib.sha256(data).hexdigest()}
    ordered = {key: full[key] for key in (*CARD_KEYS, *(key for key in full if key not in CARD_KEYS))}
    text = json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"
    # Killed between the two, the old card's sha256 does not match the new file, and read() says so.
    with atomic_write(path) as file:
        file.write(data)
    with atomic_write(card_path(path)) as file:
        file.write(text.encode())


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a weights file.

    Raises:
        WeightsError: there is no card, or it lacks a key.
    """
    where = card_path(path)
    try:
        card = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: its card {where.name} is missing; weights are used with their card beside them"
        ) from None
    except OSError as error:
        raise WeightsError(f"{where}: the card cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{where}: the card is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise WeightsError(f"{where}: the card must be a JSON object, got {type(card).__name__}")
    missing = [key for key in CARD_KEYS if key not in card]
    if missing:
        raise WeightsError(f"{where}: the card lacks {', '.join(missing)}")
    if not isinstance(card["config"], dict):
        raise WeightsError(f"{where}: the card's config must be a JSON object, got {type(card['config']).__name__}")
    return card


def read(path: str | Path, *, method: str, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and their card, and make sure that they are whole and are those of ``part`` of ``method``.

    Returns:
        the tensors in their stored dtypes, on the CPU, and the card.

    Raises:
        WeightsError: the file is missing, truncated, altered, a pickle or of another format, or belongs to another
            method or part.
    """
    import safetensors
    import safetensors.torch

    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: the weights cannot be read: {error.strerror}") from error
    _check_format(path, data)
    card = read_card(path)
    if (card["method"], card["part"]) != (method, part):
        raise WeightsError(
            f"{path}: the {part} of method {method!r} was wanted, but these are weights of the {card['part']} "
            f"of method {card['method']!r}"
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != card["sha256"]:
        raise WeightsError(f"{path}: sha256 {card['sha256']} was wanted by its card, but the file has {digest}")
    try:
        return safetensors.torch.load(data), card
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: the safetensors file is damaged: {error}") from error


def fill(network: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors into a network, which keeps its own dtypes; every name and shape must match.

    Args:
        network: the module to fill.
        tensors: its state dict, possibly stored in half precision.
        source: what to call the tensors in an error: the file's name.

    Raises:
        WeightsError: a tensor is missing, left over, or of another shape or kind.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in tensors]
    extra = [name for name in tensors if name not in own]
    if missing or extra:
        parts = [
            f"{len(these)} tensors {verb} (such as {these[0]!r})"
            for these, verb in ((missing, "are missing"), (extra, "have no place in it"))
            if these
        ]
        raise WeightsError(f"{source}: the weights do not fit the network {type(network).__name__}: {', '.join(parts)}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise WeightsError(
                f"{source}: tensor {name!r} should have shape {tuple(own[name].shape)} for the network "
                f"{type(network).__name__}, got {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise WeightsError(f"{source}: tensor {name!r} should be {own[name].dtype} or alike, got {tensor.dtype}")
    network.load_state_dict(dict(tensors))


def _check_format(path: Path, data: bytes) -> None:
    """Tell what a file is that is not a whole safetensors file: header length (8 bytes), JSON header, tensor data."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if len(data) > 8 and data[8:9] == b"{" and length > 1:
        if 8 + length <= len(data):
            try:
                header = json.loads(data[8 : 8 + length])
                wanted = (
                    8
                    + length
                    + max(
                        (info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"), default=0
                    )
                )
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise WeightsError(f"{path}: the safetensors header is damaged") from error
            if len(data) >= wanted:
                return
            raise WeightsError(f"{path}: the weights are truncated: {wanted} bytes were wanted, got {len(data)}")
        if length < 100_000_000:  # the format's own limit; more is not a length
            raise WeightsError(f"{path}: the weights are truncated inside the header, after {len(data)} bytes")
    if not data:
        found = "an empty file"
    elif data[:2] == b"PK":
        found = "a zip archive, such as a PyTorch pickle (pickles are never loaded)"
    elif data[:1] == b"\x80" and data[1:2] in b"\x00\x01\x02\x03\x04\x05" and len(data) > 1:
        found = "a pickle (pickles are never loaded)"
    else:
        found = "something else"
    raise WeightsError(f"{path}: weights must be a safetensors file, got {found}")
