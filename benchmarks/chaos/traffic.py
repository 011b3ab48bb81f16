"""What is asked under load: the good, the bad, the slow, and those that leave; and which answers are right."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

GOOD = frozenset({200})
REFUSED = frozenset({422})
LEFT = frozenset({0})  # the client went away by itself


@dataclass(frozen=True)
class Ask:
    """One request, and the statuses that are right for it while the service is well.

    Attributes:
        same: equal requests must get equal bytes.
        leave_after_s: the client closes its connection so long after it has sent everything.
        pieces_s: the body is sent in pieces, with this pause between them.
    """

    kind: str
    method: str
    path: str
    statuses: frozenset[int] = GOOD
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    same: bool = False
    leave_after_s: float | None = None
    pieces_s: float | None = None


Maker = Callable[[random.Random], Ask]


def _json(kind: str, path: str, values: Mapping[str, object]) -> Ask:
    headers = {"Content-Type": "application/json"}
    return Ask(kind, "POST", path, GOOD, headers, json.dumps(values).encode())


def one(rng: random.Random) -> Ask:
    """One image, of few enough that each comes often."""
    image_format = rng.choice(("png", "png", "jpeg", "webp", "npy"))
    query = f"class={rng.randrange(10)}&seed={rng.randrange(4)}&format={image_format}"
    return Ask("one image", "POST", f"/generate?{query}", same=True)


def the_same(rng: random.Random) -> Ask:
    """One image that everybody asks for, so that a wrong one is soon seen beside a right one."""
    return Ask("the same image", "POST", "/generate?class=7&seed=1", same=True)


def several(rng: random.Random) -> Ask:
    """Several images as a grid, files or JSON."""
    form, n = rng.choice(("grid", "zip", "json")), rng.choice((2, 3, 5, 16))
    query = f"class={rng.randrange(10)}&seed={rng.randrange(2)}&n={n}&response={form}"
    return Ask("several images", "POST", f"/generate?{query}", same=True)


def large(rng: random.Random) -> Ask:
    """As many images as a request may have."""
    query = f"class={rng.randrange(10)}&seed={rng.randrange(2)}&n=64&response=zip"
    return Ask("64 images", "POST", f"/generate?{query}", same=True)


def by_address(rng: random.Random) -> Ask:
    query = f"class={rng.randrange(10)}&seed={rng.randrange(4)}"
    return Ask("GET", "GET", f"/generate?{query}", same=True)


def unchanged(rng: random.Random) -> Ask:
    """Whoever has any answer gets a 304, without work."""
    query = f"class={rng.randrange(10)}&seed={rng.randrange(4)}"
    headers = {"If-None-Match": "*"}
    return Ask("GET with ETag", "GET", f"/generate?{query}", frozenset({304}), headers)


def openai(rng: random.Random) -> Ask:
    prompt = str(rng.randrange(10))
    values = {"prompt": prompt, "n": rng.randint(1, 3), "seed": 1}
    return _json("OpenAI", "/v1/images/generations", values)


def interpolation(rng: random.Random) -> Ask:
    """Frames between two seeds of a class."""
    image_format = rng.choice(("webp", "gif", "zip"))
    values = {"class": rng.randrange(10), "seed": [1, 2], "frames": 8, "format": image_format}
    return _json("interpolation", "/interpolate", values)


def between_classes(rng: random.Random) -> Ask:
    """Frames that are mixtures, so that the studio makes them."""
    values = {"class": [rng.randrange(5), rng.randrange(5, 10)], "seed": [1, 2], "frames": 8}
    return _json("interpolation of classes", "/interpolate", values)


def mixture(rng: random.Random) -> Ask:
    return Ask("mixture", "POST", f"/generate?class=7:0.5,9:0.5&seed={rng.randrange(3)}", same=True)


BAD: Sequence[Ask] = (
    Ask("bad", "POST", "/generate?class=999", REFUSED),
    Ask("bad", "POST", "/generate?class=sneeker", REFUSED),
    Ask("bad", "POST", "/generate?class=1&seed=-1", REFUSED),
    Ask("bad", "POST", "/generate?class=1&n=65", REFUSED),
    Ask("bad", "POST", "/generate?class=1&colour=red", REFUSED),
    Ask("bad", "POST", "/generate?class=1&truncation_psi=nan", REFUSED),
    Ask("bad", "GET", "/generate?class=1", REFUSED),
    Ask("bad", "DELETE", "/generate", frozenset({405})),
    Ask("bad", "GET", "/no/such/address", frozenset({404})),
    Ask("bad", "POST", "/generate?class=1&model=none", frozenset({404})),
    Ask("bad", "POST", "/generate", frozenset({413}), {"Content-Type": "application/json"}, b" " * 70_000),
    Ask("bad", "POST", "/generate", REFUSED, {"Content-Type": "application/json"}, b'{"class": 1,'),
    Ask("bad", "POST", "/generate?class=1", REFUSED, {"X-Deadline-Ms": "soon"}),
)  # fmt: skip


def bad(rng: random.Random) -> Ask:
    return rng.choice(BAD)


def late(rng: random.Random) -> Ask:
    """A deadline that is hardly ever kept: 504 by right, 429 if the queue says so before, 200 if it was quick."""
    query = f"class={rng.randrange(10)}&seed=1&n=16"
    statuses = frozenset({200, 429, 504})
    return Ask("short deadline", "POST", f"/generate?{query}", statuses, {"X-Deadline-Ms": "2"})


def left(rng: random.Random) -> Ask:
    """A client that leaves while its images wait, are made, or are encoded."""
    query = f"class={rng.randrange(10)}&seed={rng.randrange(99)}&n={rng.choice((1, 16, 64))}"
    leave_s = rng.choice((0.001, 0.005, 0.02, 0.1))
    statuses = LEFT | GOOD
    return Ask("left", "POST", f"/generate?{query}&response=zip", statuses, leave_after_s=leave_s)


def slow(rng: random.Random) -> Ask:
    ask = _json("slow body", "/generate", {"class": rng.randrange(10), "seed": 1})
    return Ask(ask.kind, "POST", ask.path, GOOD, ask.headers, ask.body, pieces_s=0.05)


def look(rng: random.Random) -> Ask:
    return Ask("others", "GET", rng.choice(("/classes", "/models", "/readyz", "/healthz", "/")))


MIXED: Mapping[Maker, int] = {
    one: 40, several: 10, large: 1, by_address: 8, unchanged: 6, openai: 3, interpolation: 1, between_classes: 1,
    mixture: 3, bad: 12, late: 4, left: 6, slow: 3, look: 3,
}  # fmt: skip


def large_mixture(rng: random.Random) -> Ask:
    query = f"class=7:0.5,9:0.5&seed={rng.randrange(3)}&n=64&response=json"
    return Ask("64 mixtures", "POST", f"/generate?{query}")


HEAVIEST: Sequence[Maker] = (large, large_mixture)
GOOD_ONLY: Mapping[Maker, int] = {one: 60, several: 20, large: 3, by_address: 10}
# Triton holds the plain graphs only: no mixtures.
OVER_TRITON: Mapping[Maker, int] = {
    maker: weight
    for maker, weight in MIXED.items()
    if maker not in (mixture, between_classes, late, left, slow)
}
OVER_LIARS: Mapping[Maker, int] = {the_same: 60, **OVER_TRITON}


def drawn(mix: Mapping[Maker, int], rng: random.Random) -> Ask:
    """Draw one request of a mix."""
    (maker,) = rng.choices(list(mix), list(mix.values()))
    return maker(rng)
