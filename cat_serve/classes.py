"""Which class a request means: an index, or a name written in any of the usual ways."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cat_serve.errors import InvalidInput, UnknownClass

MAX_LISTED = 20
FIRST_LISTED = 5
MAX_SUGGESTIONS = 3
SIMILARITY = 0.55
WORD_SIMILARITY = 0.8
MAX_WORDS = 8  # of what was asked; each is held against every word of every name
IMAGENET_CLASSES = 1000
EXAMPLE_MODEL = (
    "cat-m2-256"  # what to name to somebody who asks a small model for an ImageNet class
)
ALL_LISTED = "GET /classes lists all of them, and so does cat-serve classes"

_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")  # more digits are no index, and int() refuses 4,300
_SEPARATORS = re.compile(
    r"[\s_\-\u2010-\u2015]+"
)  # between words; U+2010 to U+2015 are hyphens and dashes


def imagenet_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes by index; "crane" and "maillot" are each two classes."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def fold(name: str) -> str:
    """Reduce a name to what is compared: no case; spaces, underscores and hyphens are alike.

    Letters that Unicode writes in several ways are one: an umlaut as a letter, or as a letter and two dots.
    """
    known = unicodedata.normalize("NFKC", name).casefold()  # which may compose and decompose again
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", known)).strip()


class Classes:
    """The classes of one model."""

    def __init__(self, model: str, names: Sequence[str]) -> None:
        self.model = model
        self.names = tuple(names)
        self._indices: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.names):
            self._indices[fold(name)].append(index)

    def __len__(self) -> int:
        return len(self.names)

    def has(self, name: str) -> bool:
        """Say whether some class is called that, however it is written."""
        return fold(name) in self._indices

    def index_of(self, text: str, others: Sequence[Classes] = ()) -> int:
        """Return the index that `text` means; all digits are an index, everything else is a name.

        Args:
            others: classes of the other models that are served, for the advice in the error.

        Raises:
            UnknownClass: no such index or name; says what there is instead.
            InvalidInput: two classes share the name (`ambiguous_class`).
        """
        text = text.strip()
        if _INTEGER.fullmatch(text):
            if text.isdigit() and int(text) < len(self):
                return int(text)
            self._refuse_index(text, others)
        found = self._indices.get(fold(text), [])
        if len(found) == 1:
            return found[0]
        if found:
            self._refuse_shared(text, found)
        self._refuse_name(text)

    def describe(self) -> str:
        """Return the classes by index and name; of many only the first, and the count."""
        listed = ", ".join(f"{index} {self.names[index]}" for index in range(self._shown()))
        if self._shown() == len(self):
            return f"its {len(self)} classes are {listed}"
        return f"it has {len(self)} classes, 0 to {len(self) - 1}: {listed}, ..."

    def near_misses(self, text: str) -> list[str]:
        """Return up to three names that resemble `text`, the best first."""
        wanted = fold(text)
        inside = [key for key in self._indices if len(wanted) > 2 and wanted in key]
        near = difflib.get_close_matches(wanted, self._indices, MAX_SUGGESTIONS, SIMILARITY)
        keys = list(dict.fromkeys([*near, *inside, *self._with_words_of(wanted)]))[:MAX_SUGGESTIONS]
        return [self.names[self._indices[key][0]] for key in keys]

    def _with_words_of(self, wanted: str) -> list[str]:
        """Return the names with a word that resembles one of `wanted`, as in "a photo of boots"."""
        words = {word for key in self._indices for word in key.split()}
        near = {
            close
            for word in list(dict.fromkeys(wanted.split()))[:MAX_WORDS]
            if len(word) > 2
            for close in difflib.get_close_matches(word, words, MAX_SUGGESTIONS, WORD_SIMILARITY)
        }
        return [key for key in self._indices if not near.isdisjoint(key.split())]

    def _shown(self) -> int:
        return len(self) if len(self) <= MAX_LISTED else FIRST_LISTED

    def _listed(self) -> list[dict[str, int | str]]:
        return [{"index": index, "name": self.names[index]} for index in range(self._shown())]

    def _accepted(self) -> str:
        return f"an index from 0 to {len(self) - 1}, or a class name"

    def _refuse_index(self, text: str, others: Sequence[Classes]) -> NoReturn:
        index = int(text)
        takers = [other.model for other in others if text.isdigit() and index < len(other)]
        signed = 0 <= index < len(self)
        raise UnknownClass(
            f"The model {self.model} has no class {text}: {self.describe()}.",
            hint=f"an index has no sign: {index}" if signed else _where_index_exists(index, takers),
            got=text if signed else index,
            accepted=self._accepted(),
            model=self.model,
            num_classes=len(self),
            classes=self._listed(),
            models_with_class=takers,
        )

    def _refuse_shared(self, text: str, found: Sequence[int]) -> NoReturn:
        indices = " and ".join(map(str, found))
        raise InvalidInput(
            f"{len(found)} classes of {self.model} are called {text!r}: {indices}.",
            code="ambiguous_class",
            hint=f"ask by index: {indices}",
            got=text,
            accepted=list(found),
            model=self.model,
        )

    def _refuse_name(self, text: str) -> NoReturn:
        suggestions = self.near_misses(text)
        wanted = " or ".join(repr(name) for name in suggestions)
        raise UnknownClass(
            f"The model {self.model} has no class {text!r}: {self.describe()}.",
            hint=f"did you mean {wanted}?" if suggestions else ALL_LISTED,
            got=text,
            accepted=self._accepted(),
            model=self.model,
            num_classes=len(self),
            classes=self._listed(),
            suggestions=suggestions,
        )


def _where_index_exists(index: int, takers: Sequence[str]) -> str:
    if takers:
        return f"models here with a class {index}: {', '.join(takers)}"
    if 0 <= index < IMAGENET_CLASSES:
        return (
            f"class {index} needs a model with more classes, for example a 1,000-class ImageNet "
            f"model such as {EXAMPLE_MODEL}; this repository has none"
        )
    return f"no model in this repository has a class {index}"
