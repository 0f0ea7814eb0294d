"""Whether people of the test were in a part's training data, as far as its weights card says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from deocc.data.people import family, is_name, merged, people_digests, read_people
from deocc.judge.faces import SPLITS, Faces
from deocc.judge.parts import Loaded
from deocc.judge.result import Overlap

__all__ = ["named_in", "overlap"]

DISJOINT = ("lfw", "celeba", "vggface2")
"""Data sets, by :func:`deocc.data.people.family`, whose parts share nobody."""


def overlap(one: Loaded, faces: Faces, tested: Iterable[str]) -> Overlap:
    """Compare the training people on a part's card with the people tested.

    A card that has digests of its people (``deocc.train`` writes them) is compared name by name. Of an older one, only
    what the data set's own parts promise is known: "LFW train" and "LFW test" share nobody.

    Args:
        one: the part.
        faces: the data.
        tested: identities of the images that are judged.
    """
    if not one.result.sha256:
        return Overlap("untrained", (), f"{one.key} has no weights: it was trained on nobody.")
    identities = sorted(set(tested))
    people = read_people(dict(one.card), one.result.weights)
    if people is None:
        return _by_words(one, faces)
    if not identities:
        return Overlap(
            "unknown", (), f"{faces.title} names nobody: whether {one.key} was trained on these people is unknown."
        )
    digests = people_digests(faces.title, identities)
    trained = {digest for data in people for digest in data.digests}
    both = tuple(identity for identity in identities if digests[identity] in trained)
    if both:
        listed = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
        return Overlap(
            "found",
            both,
            f"{len(both)} of the {len(identities)} people tested were in the training of {one.key}: {listed}.",
        )
    told = f"of {len(trained)} people that {one.key} was trained or evaluated on none is tested"
    # By number, people can be told from one another within one data set only. A card may name a data set twice.
    counts: dict[str, tuple[int, int]] = {}
    for data in merged(people):
        if family(data.data) != family(faces.title):
            named, every = counts.get(data.data, (0, 0))
            counts[data.data] = named + data.named, every + len(data.digests)
    unnamed = [_unnamed(title, *count) for title, count in counts.items() if count[0] < count[1]]
    where, named = "tested", sum(map(is_name, identities))
    if named < len(identities) and any(count[0] for count in counts.values()):
        unnamed.append(_unnamed(faces.title, named, len(identities)))
        where = "in both"
    if unnamed:
        return Overlap(
            "unknown",
            (),
            f"As far as names tell, {told}; {' and '.join(unnamed)}, so whether any of them is {where} is UNKNOWN.",
        )
    return Overlap("none", (), f"By name, {told}.")


def named_in(one: Loaded, recognizers: Iterable[Loaded]) -> tuple[str, ...]:
    """The recognizers that a part's configuration names: it may have been trained to please them."""
    words = set(_texts(one.card.get("config", {})))
    return tuple(other.key for other in recognizers if other.result.method and other.result.method in words)


def _unnamed(title: str, named: int, every: int) -> str:
    """Those of a data set's people that names tell nothing of."""
    return f"{f'{every - named} ' if named else ''}people of {title} are known by number or one word"


def _by_words(one: Loaded, faces: Faces) -> Overlap:
    """What can be made of the words on a card without people."""
    said = one.result.data
    trained = re.split(r"\s\+\s", re.sub(r":\s*\d+ faces.*", "", said))
    promised = family(faces.title) in DISJOINT and faces.split
    if promised and all(
        family(data) == family(faces.title) and data.split()[-1] in set(SPLITS) - {faces.split} for data in trained
    ):
        return Overlap("none", (), f"{one.key} was trained on {said}, which shares nobody with {faces.title}.")
    what = f"its card says no more than {said!r}" if said else "its card does not say"
    return Overlap("unknown", (), f"Whether {one.key} was trained on people tested here is UNKNOWN: {what}.")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for item in items:
        yield from _texts(item)
