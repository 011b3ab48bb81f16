"""Seeds of several images as text: `0-9,42` means ten in a row and one more."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from cat_serve.errors import InvalidInput
from cat_serve.latents import MAX_SEED, seed_range

MAX_CHARACTERS = 4000
PATTERN = r"^[0-9]{1,10}(-[0-9]{1,10})?(,[0-9]{1,10}(-[0-9]{1,10})?)*$"

_PART = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")


def accepted(most: int | None = None) -> str:
    """Return what is accepted, in words."""
    limit = "" if most is None else f", {most} at most"
    return f"seeds from 0 to {MAX_SEED} and ranges of them, such as '0-9,42'{limit}"


def parse_seeds(text: str, most: int) -> Sequence[int]:
    """Return the seeds in their order; a range has both its ends.

    Raises:
        InvalidInput: `bad_seeds`: no seeds or ranges, one comes twice, or there are more than `most`.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise _refused(text, most, f"{part.strip()!r} is neither a seed nor a range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise _refused(text, most, f"{part.strip()} ends before it begins")
        if last > MAX_SEED:
            raise _refused(text, most, f"{last} is above {MAX_SEED}")
        if len(seeds) + last - first >= most:
            raise _refused(text, most, f"it has more than {most} seeds")
        seeds += range(first, last + 1)
    twice = next((seed for seed, count in Counter(seeds).items() if count > 1), None)
    if twice is not None:
        raise _refused(text, most, f"{twice} comes twice")
    return as_range(seeds)


def as_range(seeds: Sequence[int]) -> Sequence[int]:
    """Return seeds in a row as a range, others as they are."""
    if len(seeds) and seeds[-1] - seeds[0] == len(seeds) - 1:
        row = seed_range(seeds[0], len(seeds))
        if list(seeds) == list(row):
            return row
    return tuple(seeds)


def seeds_text(seeds: Sequence[int]) -> str:
    """Return the shortest text that means these seeds in this order."""
    rows = itertools.groupby(enumerate(seeds), key=lambda place: place[1] - place[0])
    parts = []
    for _, row in rows:
        members = [seed for _, seed in row]
        first, last = members[0], members[-1]
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(parts)


def _refused(text: str, most: int, reason: str) -> InvalidInput:
    return InvalidInput(
        f"seeds is {text[:100]!r}: {reason}.",
        code="bad_seeds",
        hint="for example seeds=0-9,42",
        parameter="seeds",
        got=text,
        accepted=accepted(most),
    )
