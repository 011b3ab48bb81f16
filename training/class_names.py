"""Names for the classes of an image folder, from a file: folder `n01440764` is `tench`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cat_serve.classes import fold
from cat_serve.errors import DataError, InvalidInput

FORMATS = (
    'a JSON list in the order of the classes, a JSON object {"folder": "name"}, or text with lines '
    "`folder name` (ImageNet's LOC_synset_mapping.txt)"
)


def class_order(name: str) -> tuple[bool, int, str]:
    """Return the key that sorts classes: numbers as numbers, before all other names."""
    number = name.isascii() and name.isdigit()
    return not number, int(name) if number else 0, name


def name_classes(folders: Sequence[str], path: Path | None) -> tuple[str, ...]:
    """Return a name for every class folder; without a file the folders' own names.

    Of names with commas (`tench, Tinca tinca`) the first is taken. Classes whose names would be alike get their
    folder behind it: ImageNet has two cranes, a bird and a machine.

    Raises:
        InvalidInput: no such file.
        DataError: it is none of `FORMATS`, or leaves a class without a name.
    """
    if path is None:
        return tuple(folders)
    named = _read(path, folders)
    if missing := [folder for folder in folders if not named.get(folder)]:
        raise DataError(
            f"{path} names no class {missing[0]!r}"
            + (f", nor {len(missing) - 1} others." if missing[1:] else "."),
            hint=f"class names are {FORMATS}",
        )
    short = [named[folder].partition(",")[0].strip() for folder in folders]
    uses = Counter(map(fold, short))
    return tuple(
        name if uses[fold(name)] == 1 else f"{name} ({folder})"
        for name, folder in zip(short, folders, strict=True)
    )


def _read(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return folder -> name."""
    if not path.is_file():
        raise InvalidInput(f"There is no file of class names {path}.", hint=FORMATS)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() != ".json":
            lines = (line.split(maxsplit=1) for line in text.splitlines())
            return {words[0]: words[1].strip() for words in lines if len(words) == 2}
        values = json.loads(text)
        return _from_json(values, folders)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{path} holds no class names: {error}", hint=FORMATS) from error


def _from_json(values: object, folders: Sequence[str]) -> dict[str, str]:
    if isinstance(values, list):
        if len(values) != len(folders):
            raise ValueError(f"{len(values)} names for {len(folders)} class folders")
        return {folder: str(name) for folder, name in zip(folders, values, strict=True)}
    if not isinstance(values, dict):
        raise ValueError(f"a JSON {type(values).__name__}")
    if all(isinstance(value, list) and len(value) == 2 for value in values.values()):
        return {str(pair[0]): str(pair[1]) for pair in values.values()}  # {"0": [folder, name]}
    return {str(folder): str(name) for folder, name in values.items()}
