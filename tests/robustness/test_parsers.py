"""Whatever a parser is given, it answers or raises the project's own error, in little time; writers are read back."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cat_serve.classes import Classes, imagenet_names
from cat_serve.contract import STUDIO_SLOTS
from cat_serve.errors import ArtefactError, CatServeError, InvalidInput
from cat_serve.keys import KeyRing, read_keys
from cat_serve.latents import MAX_SEED
from cat_serve.manifest import MANIFEST_NAME, Artefact, read_manifest
from cat_serve.mixtures import class_text, parse_classes, slots
from cat_serve.seeds import parse_seeds, seeds_text
from cat_serve.settings import Settings, explain
from cat_serve.web.asking import LARGEST, latent_of
from tests.robustness.tried import PROPERTY, TRIED

SECONDS = 2.0  # of this thread's own time; most need a thousandth
IMAGENET = Classes("imagenet", imagenet_names())
SMALL = Classes("small", ("Cat", "sea lion", "7th thing", "12", "crane", "crane", "a:b"))

# Text as people, scripts and attackers write it.
NASTY = st.one_of(
    st.text(max_size=120),
    st.text("0123456789.:,-+eE_ ", max_size=120),
    st.text("٣३３Ⅷ²½\u200b\u0000\ud800'\"\\", max_size=20),
    st.sampled_from(
        (
            "",
            " ",
            "-0",
            "+1",
            "1_0",
            "0x10",
            "1e999",
            "nan",
            "inf",
            "9" * 5000,
            ":" * 500,
            "," * 500,
        )
    ),
)


@contextmanager
def tried_once() -> Iterator[None]:
    """Count an input, and hold what is done with it to a time."""
    TRIED.add("parsers")
    began_s = time.thread_time()
    yield
    assert time.thread_time() - began_s < SECONDS


def outcome(call: Callable[[], Any], errors: type[CatServeError] = CatServeError) -> Any:
    """Return what a call returns, or its error, if that is one of ours with words for people."""
    with tried_once():
        try:
            return call()
        except errors as raised:
            error = raised
    assert error.message
    json.dumps(dict(error.details))
    return error


@PROPERTY
@given(NASTY)
@example("9" * 100_000)
@example("x" * 100_000)
@example("cran" * 1000)
def test_text_is_a_class_or_refused(text: str) -> None:
    for classes in (IMAGENET, SMALL):
        index = outcome(partial(classes.index_of, text), InvalidInput)
        assert isinstance(index, InvalidInput) or 0 <= index < len(classes)


@PROPERTY
@given(
    st.integers(0, len(IMAGENET) - 1),
    st.sampled_from((str.upper, str.lower, str.title, "{} ".format)),
)
def test_name_is_its_class_however_it_is_written(index: int, write: Callable[[str], str]) -> None:
    found = outcome(lambda: IMAGENET.index_of(write(IMAGENET.names[index])))
    if isinstance(found, InvalidInput):
        assert (found.code, index in found.details["accepted"]) == ("ambiguous_class", True)
    else:
        assert found == index


@PROPERTY
@given(NASTY)
@example("1:" + "9" * 10_000)
@example("0:1e-999,1:1")
@example(",".join(f"{i}:0.001" for i in range(1000)))
def test_text_is_a_mixture_or_refused(text: str) -> None:
    for classes in (IMAGENET, SMALL):
        mixture = outcome(partial(parse_classes, text, classes), InvalidInput)
        if isinstance(mixture, InvalidInput):
            continue
        assert 1 <= len(mixture) <= STUDIO_SLOTS
        assert list(mixture) == sorted(mixture)
        assert all(0 <= index < len(classes) and weight > 0 for index, weight in mixture.items())
        assert math.isclose(math.fsum(mixture.values()), 1, abs_tol=2e-6)


@st.composite
def weights(draw: st.DrawFn) -> dict[int, float]:
    indices = draw(st.lists(st.integers(0, 999), min_size=1, max_size=STUDIO_SLOTS, unique=True))
    parts = [draw(st.floats(1e-6, 1)) for _ in indices]
    total = math.fsum(parts)
    return {index: part / total for index, part in sorted(zip(indices, parts, strict=True))}


@PROPERTY
@given(weights())
def test_mixture_is_read_as_it_was_written(mixture: dict[int, float]) -> None:
    with tried_once():
        read = parse_classes(class_text(mixture), IMAGENET)
    assert read == (mixture if len(mixture) > 1 else {next(iter(mixture)): 1.0})
    _, weight = slots([read])
    assert abs(weight.sum() - 1) < 1e-5


@PROPERTY
@given(weights(), st.integers(0, 3))
def test_mixture_with_a_class_twice_is_refused(mixture: dict[int, float], place: int) -> None:
    index = list(mixture)[place % len(mixture)]
    error = outcome(
        partial(parse_classes, f"{class_pairs(mixture)},{index}:{mixture[index]!r}", IMAGENET)
    )
    assert isinstance(error, InvalidInput)
    assert "twice" in error.message or len(mixture) == STUDIO_SLOTS


def class_pairs(mixture: dict[int, float]) -> str:
    return ",".join(f"{index}:{weight!r}" for index, weight in mixture.items())


@PROPERTY
@given(NASTY, st.integers(1, 300))
@example("0-4294967295", 10_000)
@example("4294967296", 10)
@example("5-1", 10)
@example(",".join(map(str, range(4000))), 3999)
def test_text_is_seeds_or_refused(text: str, most: int) -> None:
    seeds = outcome(lambda: parse_seeds(text, most), InvalidInput)
    if not isinstance(seeds, InvalidInput):
        assert 1 <= len(seeds) == len(set(seeds)) <= most
        assert all(0 <= seed <= MAX_SEED for seed in seeds)


@PROPERTY
@given(
    st.lists(st.integers(0, MAX_SEED) | st.integers(0, 20), min_size=1, max_size=60, unique=True)
)
def test_seeds_are_read_as_they_were_written(seeds: list[int]) -> None:
    with tried_once():
        read = parse_seeds(seeds_text(seeds), len(seeds))
    assert list(read) == seeds


NUMBERS = (
    st.floats() | st.integers(-(10**400), 10**400) | st.booleans() | st.none() | st.text(max_size=3)
)
NESTED = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=5), max_leaves=30)


def deep(levels: int) -> Any:
    value: Any = 1.0
    for _ in range(levels):
        value = [value]
    return value


@PROPERTY
@given(
    NESTED | st.lists(NUMBERS, min_size=6, max_size=6),
    st.sampled_from(((6,), (2, 3), (1, 1, 1), ())),
)
@example(deep(900), (6,))
def test_value_is_a_latent_or_refused(value: Any, shape: tuple[int, ...]) -> None:
    z = outcome(lambda: latent_of(value, shape), InvalidInput)
    if not isinstance(z, InvalidInput):
        assert z.shape == shape
        assert z.dtype == np.float32
        assert (np.abs(z) <= LARGEST).all()


@PROPERTY
@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=6, max_size=6))
def test_latent_has_the_numbers_that_were_given(values: list[float]) -> None:
    with tried_once():
        assert latent_of(values, (6,)).tolist() == values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parsers")


TOML_VALUES = st.one_of(
    NASTY, st.integers(), st.floats(), st.booleans(), st.lists(st.integers(), max_size=3)
)


def toml_of(name: str, values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return json.dumps(value) if not isinstance(value, float) else str(value)

    lines = [f"{json.dumps(key)} = {text(value)}" for key, value in values.items()]
    return f"[{json.dumps(name)}]\n" + "\n".join(lines)


@PROPERTY
@given(
    st.binary(max_size=200)
    | st.builds(
        lambda *parts: toml_of(*parts).encode("utf-8", "surrogatepass"),
        NASTY | st.just("alice"),
        st.dictionaries(
            st.sampled_from(("key", "images_per_minute", "queued_images", "x")), TOML_VALUES
        ),
    )
)
@example(b"a = " + b"[" * 5000)
@example(b"alice = 'sixteen-characters'")
@example(b"")
def test_file_of_keys_is_read_or_refused_without_showing_it(folder: Path, content: bytes) -> None:
    file = folder / "keys.toml"
    file.write_bytes(content)
    keys = outcome(lambda: read_keys(file, None), InvalidInput)
    assert isinstance(keys, InvalidInput) or keys.names


@PROPERTY
@given(NASTY)
@example("alice=" + "k" * 16)
def test_variable_of_keys_is_read_or_refused(text: str) -> None:
    keys = outcome(lambda: read_keys(None, text), InvalidInput)
    assert keys is None or isinstance(keys, (KeyRing, InvalidInput))


@PROPERTY
@given(NASTY)
def test_only_the_key_finds_its_holder(text: str) -> None:
    keys = read_keys(None, "alice=0123456789abcdef")
    assert keys is not None
    with tried_once():
        assert (keys.find(text) is not None) == (text == "0123456789abcdef")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@PROPERTY
@given(st.binary(max_size=100) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 50_000)
@example(b"\xff\xfe")
@example(b'{"format": "cat-serve-manifest-2"}')
def test_file_is_a_manifest_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "model" / "1" / MANIFEST_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    error = outcome(lambda: read_manifest(path), ArtefactError)
    assert isinstance(error, ArtefactError)


@PROPERTY
@given(st.data())
def test_manifest_with_another_value_is_read_or_refused(
    shipped: Artefact, folder: Path, data: st.DataObject
) -> None:
    values = json.loads((shipped.folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    place = values if data.draw(st.booleans()) else values["golden"]
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON_VALUES)
    path = folder / "changed" / "1" / MANIFEST_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    outcome(lambda: read_manifest(path), ArtefactError)


def test_manifest_is_read_as_it_was_written(shipped: Artefact, folder: Path) -> None:
    path = folder / "again" / "1"
    path.mkdir(parents=True)
    shipped.manifest.save(path)
    assert read_manifest(path / MANIFEST_NAME) == shipped.manifest


def settings_of(values: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    try:
        return Settings(**values)
    except ValidationError as error:
        raise explain(error) from error


HOSTS = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True)
URLS = st.builds("{}:{}".format, HOSTS, st.integers(1, 65535))


@PROPERTY
@given(NASTY)
@example("[" * 5000)
@example("[1, 2]")
@example('{"a": 1}')
@example("[::1]:8001")
def test_text_is_a_list_of_servers_or_refused(text: str) -> None:
    settings = outcome(lambda: settings_of({"backend": "triton", "triton_url": text}), InvalidInput)
    if not isinstance(settings, InvalidInput):
        assert all(0 < int(url.rpartition(":")[2]) < 2**16 for url in settings.triton_url)


@PROPERTY
@given(st.lists(URLS, min_size=1, max_size=5, unique=True), st.booleans())
def test_servers_are_read_as_they_were_written(urls: list[str], as_json: bool) -> None:
    text = json.dumps(urls) if as_json else ", ".join(urls)
    with tried_once():
        assert settings_of({"backend": "triton", "triton_url": text}).triton_url == tuple(urls)


SETTINGS = st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), NASTY, max_size=4)


@PROPERTY
@given(SETTINGS)
def test_settings_are_taken_or_explained(values: dict[str, str]) -> None:
    error = outcome(lambda: settings_of(values), InvalidInput)
    if isinstance(error, InvalidInput) and "api_keys" in values and len(values) == 1:
        assert values["api_keys"] not in error.message
