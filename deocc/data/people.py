"""Who is in a data set, in a form that a weights card can carry and another data set can be compared with.

A card written by ``deocc.train`` has the key ``people``: one entry for each data set trained on, with its title and a
short digest for each identity. A digest is of the person's name, spelled alike whatever the data set; an identity that
is no name (a number, a single word) means something in its own data set only, and its digest is of both.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deocc.data.packed import PackedFaces, read_index
from deocc.errors import WeightsError

__all__ = [
    "People",
    "family",
    "identity_digests",
    "is_name",
    "merged",
    "people_digests",
    "read_people",
    "training_people",
]

DIGITS = 10
"""Hex digits of a digest: two of ten thousand people have the same by chance once in twenty thousand data sets."""


@dataclass(frozen=True)
class People:
    """The people of one data set that something was trained on.

    Attributes:
        data: the title of the data set.
        named: how many of them are known by name, not by number.
        digests: one for each, sorted.
    """

    data: str
    named: int
    digests: tuple[str, ...]

    def to_card(self) -> dict[str, Any]:
        """As a card carries it."""
        return {"data": self.data, "count": len(self.digests), "named": self.named, "digests": "".join(self.digests)}


def family(title: str) -> str:
    """The first word of a data set's title, in lower case: what its parts and versions share ("LFW test" is "lfw")."""
    word = re.match(r"[a-z0-9]*", title.lower())
    assert word is not None
    return word[0]


def is_name(identity: str) -> bool:
    """Whether an identity looks like a person's name: two words or more, with nothing but letters."""
    words = _words(identity)
    return len(words) > 1 and all(word.isalpha() for word in words) and any(len(word) > 1 for word in words)


def people_digests(title: str, identities: Iterable[str]) -> dict[str, str]:
    """Identity -> digest, ten hex digits, for the identities of a data set of that title."""
    found = {}
    for identity in identities:
        spelled = f"name\n{' '.join(_words(identity))}" if is_name(identity) else f"{family(title)}\n{identity}"
        found[identity] = hashlib.sha256(spelled.encode()).hexdigest()[:DIGITS]
    return found


def training_people(faces: PackedFaces) -> list[People] | None:
    """The people in packed faces, by data set; those of an entry without images here (held out, say) are left out.

    None where a face is nobody's, as in a pack of kind ``folder``: who was trained on is not known then.
    """
    if (faces.identities < 0).any():
        return None
    present = {faces._identity_keys[number] for number in set(faces.identities.tolist())}
    found = []
    for path in faces.paths:
        title = read_index(path)["source"]
        identities = sorted(identity for folder, identity in present if folder == path)
        digests = people_digests(title, identities)
        found.append(People(title, sum(map(is_name, identities)), tuple(sorted(digests.values()))))
    return found


def identity_digests(faces: PackedFaces) -> list[str]:
    """The digest of each of ``faces.identity_names``; the same for one person in two packs."""
    found: dict[tuple[Path, str], str] = {}
    for path in faces.paths:
        names = [name for folder, name in faces._identity_keys if folder == path]
        digests = people_digests(read_index(path)["source"], names)
        found |= {(path, name): digest for name, digest in digests.items()}
    return [found[key] for key in faces._identity_keys]


def read_people(card: dict[str, Any], source: str | Path) -> Sequence[People] | None:
    """The people on a weights card, or None where it does not say.

    Raises:
        WeightsError: what it says cannot be read.
    """
    said = card.get("people")
    if said is None:
        return None
    try:
        found = [
            People(
                str(one["data"]),
                int(one["named"]),
                tuple(one["digests"][at : at + DIGITS] for at in range(0, len(one["digests"]), DIGITS)),
            )
            for one in said
        ]
        if any(len(one.digests) != said_one["count"] for one, said_one in zip(found, said, strict=True)):
            raise ValueError("count does not fit the digests")
    except (TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"{source}: the card's people cannot be read ({type(error).__name__}: {error})") from error
    return found


def merged(people: Iterable[People]) -> list[People]:
    """The same people, each data set's once where one entry holds all of another."""
    kept: list[People] = []
    for one in sorted(people, key=lambda one: -len(one.digests)):
        if not any(one.data == other.data and set(one.digests) <= set(other.digests) for other in kept):
            kept.append(one)
    return kept


def _words(identity: str) -> list[str]:
    # One spelling of an accent for all: file systems differ.
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", identity).lower())
