"""What is wrong with a data set that training would not say: too few, unequal classes, pictures that come twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from training.sources import Source

FEW = 300  # photographs of a class; below, a discriminator soon knows them by heart
FEWEST = 50
UNEQUAL = 10  # times fewer, or more, than the median class
SHOWN = 3


@dataclass(frozen=True)
class Duplicates:
    """Photographs whose files are equal, byte for byte, to one before them.

    Attributes:
        pairs: (first, later) indices.
        across: those of them that lie in another class.
    """

    pairs: list[tuple[int, int]]
    across: list[tuple[int, int]]

    @classmethod
    def find(cls, contents: Sequence[bytes], labels: np.ndarray) -> Duplicates:
        """Compare the hashes of all files; an empty one is of a file that could not be read."""
        first: dict[bytes, int] = {}
        pairs = [
            (before, index)
            for index, content in enumerate(contents)
            if content and (before := first.setdefault(content, index)) != index
        ]
        return cls(pairs, [(a, b) for a, b in pairs if labels[a] != labels[b]])

    def warnings(self, files: Sequence[str]) -> Iterator[str]:
        """Yield a sentence for each kind that there is."""
        if self.pairs:
            yield f"{len(self.pairs)} photographs come more than once: {_pairs(self.pairs, files)}"
        if self.across:
            yield (
                f"{len(self.across)} of them lie in two classes, which teaches both the wrong thing: "
                f"{_pairs(self.across, files)}"
            )


def _pairs(pairs: Sequence[tuple[int, int]], files: Sequence[str]) -> str:
    named = "; ".join(f"{files[b]} is {files[a]}" for a, b in pairs[:SHOWN])
    return named + ("; ..." if len(pairs) > SHOWN else "")


def warnings_about(source: Source) -> list[str]:
    """Return a sentence for everything about numbers and names that people should know before they train."""
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    return [
        *_too_few(counts, source.class_names),
        *_unequal(counts, source.class_names),
        *_alike(source.class_names),
        *_gaps(source.class_names),
    ]


def _named(indices: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> str:
    """Name some classes, the smallest first."""
    order = sorted(indices.tolist(), key=lambda index: (counts[index], index))
    named = ", ".join(f"{names[index]} ({counts[index]})" for index in order[:SHOWN])
    return named + (", ..." if len(order) > SHOWN else "")


def _too_few(counts: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    few = np.flatnonzero(counts < FEW)
    if not few.size:
        return
    expect = (
        f"below {FEWEST} the model repeats its photographs"
        if counts[few].min() < FEWEST
        else "expect little variety, and photographs that are repeated after long training"
    )
    yield (
        f"{few.size} of {len(names)} classes have fewer than {FEW} photographs: {_named(few, counts, names)}; {expect}. "
        "Start from a trained model (--from) or join classes"
    )


def _unequal(counts: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    median = float(np.median(counts))
    small = np.flatnonzero(counts * UNEQUAL < median)
    large = np.flatnonzero(counts > UNEQUAL * median)
    if small.size or large.size:
        odd = np.concatenate([small, large])
        yield (
            f"classes are very unequal, {counts.min()} to {counts.max()} photographs around a median of {median:g}: "
            f"{_named(odd, counts, names)}; training draws photographs, so a small class is learnt last"
        )


def _alike(names: Sequence[str]) -> Iterator[str]:
    """Warn of names that differ in case alone: usually one class, unpacked twice."""
    groups = defaultdict(list)
    for name in names:
        groups[name.casefold()].append(name)
    for group in groups.values():
        if len(group) > 1:
            yield f"classes differ in case alone: {', '.join(group)}; if they are one, join their folders"


def _gaps(names: Sequence[str]) -> Iterator[str]:
    """Warn of missing numbers: class 3 is then not index 3."""
    if not all(name.isascii() and name.isdigit() for name in names):
        return
    numbers = [int(name) for name in names]
    wrong = [(name, index) for index, (name, number) in enumerate(zip(names, numbers, strict=True)) if number != index]  # fmt: skip
    if wrong:
        twice = [n for n, uses in Counter(numbers).items() if uses > 1]
        why = f"{twice[0]} comes twice" if twice else "they do not count from 0 without gaps"
        yield (
            f"classes are numbers, but {why}: class {wrong[0][0]} gets the index {wrong[0][1]}, which is what "
            "requests mean by a number. Give names with --class-names"
        )
