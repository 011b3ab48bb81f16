"""What schemathesis is taught of this service; loaded by its command line (SCHEMATHESIS_HOOKS), not by pytest.

The document says of every parameter what it may be. What it cannot say is how parameters of one request fit together:
parameters go into the query or into the body, a seed and `n` may not pass the last seed, one file is one image. Cases that
are meant to be good are made to keep these rules. Cases that are meant to be bad stay as bad as they are: of those only a
place with nothing wrong in it is left out, where the other place has the fault, so that it is the fault that is answered.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.core import NOT_SET
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.core.parameters import ParameterLocation

MAX_SEED = 2**32 - 1
CLASSES = 10  # of the model that ships
MOST_IMAGES = 8  # of the server under test
GIF_FPS = 50
TOLERANCE = 1e-4
MIXTURE = "7:0.7,9:0.3"
DEADLINE_EXCEEDED = 504
UNKNOWN_HEADER = "x-schemathesis-unknown-property"
NO_BODY = (NOT_SET, None)  # null is allowed, and says nothing
TWO_PLACES = ("/generate", "/interpolate")


@st.composite
def class_mixtures(draw: st.DrawFn) -> str:
    """Draw up to four classes with weights that sum to 1."""
    indices = draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=4, unique=True))
    parts = [draw(st.integers(1, 99)) for _ in indices]
    weights = [part / sum(parts) for part in parts]
    return ",".join(f"{index}:{weight:.6f}" for index, weight in zip(indices, weights, strict=True))


@st.composite
def seed_ranges(draw: st.DrawFn) -> str:
    """Draw seeds and ranges of seeds that do not meet, no more than the server makes at once."""
    parts, first, left = [], draw(st.integers(0, MAX_SEED - 10_000)), MOST_IMAGES
    while left and (not parts or draw(st.booleans())):
        count = draw(st.integers(1, left))
        parts.append(str(first) if count == 1 else f"{first}-{first + count - 1}")
        first, left = first + count + draw(st.integers(1, 1000)), left - count
    return ",".join(parts)


schemathesis.openapi.format("class-mixture", class_mixtures())
schemathesis.openapi.format("seed-ranges", seed_ranges())


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Make a good case keep the rules between parameters; leave of a bad one the place that is bad."""
    one_place(case)
    if case.meta is None or case.meta.generation.mode.is_negative:
        empty_lists(case)
    else:
        given = case.query if case.body in NO_BODY else case.body
        if isinstance(given, dict):
            fit(case.path, case.method, given)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Accept that an unknown header field is accepted: anybody on the way may add some (RFC 9110, 5.1)."""
    if not isinstance(failure, AcceptedNegativeData) or UNKNOWN_HEADER not in (case.headers or {}):
        return True
    others = (ParameterLocation.QUERY, ParameterLocation.BODY, ParameterLocation.PATH)
    return any(is_negative(case, location) for location in others)


def one_place(case: Any) -> None:
    """Send parameters in the query or in the body: both is a 422 by contract."""
    if case.path not in TWO_PLACES or case.method != "POST" or case.body in NO_BODY:
        return
    if not case.query:
        return
    if is_negative(case, ParameterLocation.QUERY) and not is_negative(case, ParameterLocation.BODY):
        case.body = NOT_SET
    else:
        case.query = {}


def empty_lists(case: Any) -> None:
    """Send an empty text for an empty list: in an address an empty list is nothing, and nothing is right."""
    for name, value in (case.query or {}).items():
        if value == []:
            case.query[name] = [""]


def is_negative(case: Any, location: ParameterLocation) -> bool:
    component = case.meta.components.get(location) if case.meta is not None else None
    return component is not None and component.mode.is_negative


def fit(path: str, method: str, given: dict[str, Any]) -> None:
    """Change parameters that are each right and together wrong, in place."""
    if path == "/interpolate":
        fit_path(given)
    elif path == "/generate":
        fit_images(given, "class")
        given.setdefault("class", "7")  # the document cannot say: in the query or in the body
        if method == "GET" and given.keys().isdisjoint({"seed", "seeds"}):
            given["seed"] = 1
    elif path == "/v1/images/generations":
        fit_images(given, "prompt")
        if ":" in str(given["prompt"]):
            given.pop("response_format", None)  # an image of a mixture has no address


def fit_images(given: dict[str, Any], name: str) -> None:
    """Leave one source of seeds, within the last seed, and an answer that holds the images."""
    if name in given:
        given[name] = fit_class(given[name])
    if given.get("seeds") is not None and not are_seeds(given["seeds"]):
        given["seeds"] = "0-2,42"  # of the phase `coverage`, which looks at patterns alone
    if given.get("z") is not None:
        drop(given, "seed", "n", "seeds")
    elif given.get("seeds") is not None:
        drop(given, "seed", "n")
    seed, n = int(given.get("seed") or 0), int(given.get("n") or 1)  # in a query they are texts
    if seed + n > MAX_SEED + 1:
        given["seed"] = MAX_SEED + 1 - n
    if given.get("response") == "image":
        drop(given, "n", "seeds")
    if given.get("format") == "npy" and given.get("response") == "grid":
        drop(given, "response")


def fit_class(value: Any) -> Any:
    """Return a mixture whose weights sum to 1 for one that only looks like a mixture."""
    if not isinstance(value, str) or ":" not in value:
        return value
    pairs = [part.split(":") for part in value.split(",")]
    indices = {int(index) for index, _ in pairs}
    fits = abs(sum(float(weight) for _, weight in pairs) - 1) < TOLERANCE
    return value if fits and len(indices) == len(pairs) and max(indices) < CLASSES else MIXTURE


def are_seeds(text: str) -> bool:
    """Say whether a text has seeds, each once and not too many."""
    seeds: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first) + 1
        if not start < stop <= MAX_SEED + 1 or stop - start + len(seeds) > MOST_IMAGES:
            return False
        if seeds & set(range(start, stop)):
            return False
        seeds |= set(range(start, stop))
    return True


def fit_path(given: dict[str, Any]) -> None:
    """Make as many seeds as classes, or one of them, and no more classes at once than can be mixed."""
    classes = as_list(given.get("class")) or ["7"]
    seeds = as_list(given.get("seed")) or [1, 2]
    classes = [fit_class(each) for each in classes]
    if any(":" in str(each) for each in classes):
        classes = classes[:1]  # two mixtures may have more classes than can be mixed
    count = max(2, min(len(classes), len(seeds)))
    given["class"] = classes[:count] if len(classes) > 1 else classes[:1]
    given["seed"] = (seeds * 2)[:count] if len(seeds) > 1 or len(classes) == 1 else seeds[:1]
    if given.get("format") == "gif" and given.get("fps"):
        given["fps"] = min(int(given["fps"]), GIF_FPS)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def drop(given: dict[str, Any], *names: str) -> None:
    for name in names:
        given.pop(name, None)


@schemathesis.check
def late_only_after_a_deadline(context: Any, response: Any, case: Any) -> None:
    """A 504 is the answer to a deadline that the case itself sent, and to nothing else."""
    if response.status_code == DEADLINE_EXCEEDED:
        sent = {name.lower() for name in case.headers or {}}
        assert "x-deadline-ms" in sent, "504 without a deadline"
