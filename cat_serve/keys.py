"""API keys: who calls, and how many images they may have made.

A file of keys is TOML, a table or a key for each name:

    bob = "a-key-of-at-least-16-characters"

    [alice]
    key = "another-key-that-is-not-short"
    images_per_minute = 600      # 0, or absent: the server's own setting
    queued_images = 64
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.errors import BudgetExceeded, InvalidInput, NeverInTime, Overloaded

if TYPE_CHECKING:
    from cat_serve.settings import Settings

MIN_KEY_CHARACTERS = 16
MINUTE_S = 60.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(rf"[\x21-\x7e]{{{MIN_KEY_CHARACTERS},512}}")
_FIELDS = {"key", "images_per_minute", "queued_images"}
_MAKE_ONE = "make a key with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
_NAME_A_FILE = (
    'CAT_SERVE_API_KEYS_FILE (or --api-keys-file) names a TOML file of lines like: bob = "KEY"'
)


class Caller:
    """The holder of a key and what is left of their budget; used by one event loop.

    Args:
        images_per_minute: on average; a minute's worth may come at once. 0: no limit.
        queued_images: admitted and not yet made. 0: no limit.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        name: str,
        images_per_minute: int = 0,
        queued_images: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.images_per_minute = images_per_minute
        self.queued_images = queued_images
        self.queued = 0
        self._clock = clock
        self._left = float(images_per_minute)
        self._counted_s = clock()

    @contextmanager
    def admitted(self, images: int, seconds_for: Callable[[int], int]) -> Iterator[None]:
        """Count images against the budget for as long as they are being made.

        What the service refuses at its door is not charged.

        Args:
            seconds_for: says how long so many images take.

        Raises:
            BudgetExceeded: the budget does not allow them, now or ever.
        """
        self._require_place(images, seconds_for)
        self._charge(images)
        self.queued += images
        try:
            yield
        except (Overloaded, NeverInTime):
            self._left += images
            raise
        finally:
            self.queued -= images

    def _require_place(self, images: int, seconds_for: Callable[[int], int]) -> None:
        if self.queued_images and self.queued + images > self.queued_images:
            fits_ever = images <= self.queued_images
            raise self._exceeded(
                f"{self.queued} images of this key wait already, and {self.queued_images} may.",
                images,
                seconds_for(self.queued + images - self.queued_images) if fits_ever else None,
            )

    def _charge(self, images: int) -> None:
        if not self.images_per_minute:
            return
        now_s = self._clock()
        earned = (now_s - self._counted_s) * self.images_per_minute / MINUTE_S
        self._left = min(float(self.images_per_minute), self._left + earned)
        self._counted_s = now_s
        if images > self._left:
            lacking_s = (images - self._left) * MINUTE_S / self.images_per_minute
            raise self._exceeded(
                f"This key may have {self.images_per_minute} images a minute made, and {images} "
                f"more would be too many.",
                images,
                max(1, math.ceil(lacking_s)) if images <= self.images_per_minute else None,
            )
        self._left -= images

    def _exceeded(self, message: str, images: int, retry_after_s: int | None) -> BudgetExceeded:
        hint = f"try again in {retry_after_s} s" if retry_after_s else "ask for fewer images"
        return BudgetExceeded(message, hint=hint, got=images, retry_after_s=retry_after_s)


class KeyRing:
    """All keys, as hashes.

    Args:
        holders: the caller of each key.
    """

    def __init__(self, holders: Mapping[str, Caller]) -> None:
        self._holders = [(_digest(key), caller) for key, caller in holders.items()]

    @property
    def names(self) -> list[str]:
        return [caller.name for _, caller in self._holders]

    def named(self, name: str) -> Caller | None:
        """Return the holder of the key with this name."""
        return next((caller for _, caller in self._holders if caller.name == name), None)

    def find(self, presented: str) -> Caller | None:
        """Return who holds a key; takes as long whichever it is, and if it is none."""
        digest, found = _digest(presented), None
        for known, caller in self._holders:
            if hmac.compare_digest(digest, known):
                found = caller
        return found


def keys_of(settings: Settings) -> KeyRing | None:
    """Return the keys that the settings name; None if they name none.

    Raises:
        InvalidInput: see `read_keys`.
    """
    variable = settings.api_keys.get_secret_value() if settings.api_keys else None
    return read_keys(
        settings.api_keys_file, variable, settings.key_images_per_minute, settings.key_queued_images
    )


def read_keys(
    file: Path | None, variable: str | None, images_per_minute: int = 0, queued_images: int = 0
) -> KeyRing | None:
    """Return the keys of a file and of `name=key,name=key`; None if neither was given.

    Args:
        images_per_minute, queued_images: budget of a key that names none of its own.

    Raises:
        InvalidInput: they cannot be read, or are no keys; never shows one.
    """
    if file is None and not variable:
        return None
    entries = _of_file(file) if file is not None else []
    entries += _of_variable(variable) if variable else []
    holders: dict[str, Caller] = {}
    for name, values in entries:
        key = _checked(name, values)
        if key in holders or name in (caller.name for caller in holders.values()):
            raise _refused(f"The key or the name {name!r} is there twice.")
        holders[key] = Caller(
            name,
            values.get("images_per_minute") or images_per_minute,
            values.get("queued_images") or queued_images,
        )
    if not holders:  # a file that was emptied must not open the service
        raise _refused("There is no key in it.")
    return KeyRing(holders)


def _of_file(file: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(f"{file} cannot be read: {error.strerror}.", _NAME_A_FILE) from error
    except (ValueError, RecursionError):  # its message may show a line of the file
        raise _refused(f"{file} is no TOML of names and keys.", _NAME_A_FILE) from None
    return [(n, v if isinstance(v, dict) else {"key": v}) for n, v in table.items()]


def _of_variable(variable: str) -> list[tuple[str, dict[str, Any]]]:
    pairs = [entry.partition("=") for entry in variable.split(",")]
    if not all(sign for _, sign, _ in pairs):
        raise _refused("The variable is not name=key,name=key.")
    return [(name.strip(), {"key": key.strip()}) for name, _, key in pairs]


def _checked(name: str, values: Mapping[str, Any]) -> str:
    if not _NAME.fullmatch(name):  # not shown: who writes a key alone writes it here
        raise _refused("A name is not one: letters, digits, '.', '_' and '-', at most 64.")
    key = values.get("key")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise _refused(
            f"The key of {name!r} is not {MIN_KEY_CHARACTERS} to 512 printable ASCII characters without spaces."
        )
    if values.keys() - _FIELDS:
        raise _refused(f"{name!r} has unknown fields; there are {', '.join(sorted(_FIELDS))}.")
    for field in _FIELDS - {"key"}:
        value = values.get(field, 0)
        if type(value) is not int or value < 0:
            raise _refused(f"{field} of {name!r} is not a whole number from 0.")
    return key


def _refused(message: str, hint: str = _MAKE_ONE) -> InvalidInput:
    return InvalidInput(f"API keys: {message}", code="bad_settings", hint=hint)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
