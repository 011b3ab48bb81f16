"""Mixtures of classes: what their text means, and the images of POST /generate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cat_serve.classes import Classes
from cat_serve.errors import InvalidInput, UnknownClass
from cat_serve.images import decode_png, read_parameters
from cat_serve.mixtures import class_of, class_text, parse_classes, slots

CLASSES = Classes("toy", tuple(f"thing {i}" for i in range(12)))

READ = [
    ("7", {7: 1.0}),
    ("thing 7", {7: 1.0}),
    ("7:1", {7: 1.0}),
    ("7:0.7,9:0.3", {7: 0.7, 9: 0.3}),
    ("9:0.3, 7:0.7", {7: 0.7, 9: 0.3}),
    ("7:1,9:0", {7: 1.0}),
    ("0:.25,1:2.5e-1,2:0.25,3:0.25", {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}),
    ("11:1.", {11: 1.0}),
]

REFUSED = [
    # text, code, words of the detail
    ("7:0.7,9:0.2", "bad_mixture", "sum to 0.9,"),
    ("7:0.7,9:0.302", "bad_mixture", "sum to 1.002,"),
    ("7:0", "bad_mixture", "sum to 0,"),
    ("7:0.5,7:0.5", "bad_mixture", "class 7 comes twice"),
    ("7:0.5,07:0.5", "bad_mixture", "class 7 comes twice"),
    ("7:1.5,9:-0.5", "bad_mixture", "below 0"),
    ("7:nan,9:1", "bad_mixture", "'nan' is no weight"),
    ("7:inf,9:1", "bad_mixture", "'inf' is no weight"),
    ("7:1e999,9:1", "bad_mixture", "is no weight"),
    ("7:0x1,9:0", "bad_mixture", "is no weight"),
    ("7:1_0,9:0", "bad_mixture", "is no weight"),
    ("7:,9:1", "bad_mixture", "'' is no weight"),
    ("7:\u0660", "bad_mixture", "is no weight"),
    ("thing 7:0.5,9:0.5", "bad_mixture", "takes no names"),
    ("-7:0.5,9:0.5", "bad_mixture", "no class index"),
    ("7:0.5,9", "bad_mixture", "is no weight"),
    ("7:0.5,9:0.5,", "bad_mixture", "no class index"),
    (":1", "bad_mixture", "no class index"),
    ("0:0.2,1:0.2,2:0.2,3:0.2,4:0.2", "bad_mixture", "4 can be mixed"),
    ("7:0.5,12:0.5", "unknown_class", "no class 12"),
]


@pytest.mark.parametrize(("text", "mixture"), READ)
def test_text_means_a_mixture(text: str, mixture: dict[int, float]) -> None:
    read = parse_classes(text, CLASSES)
    assert dict(read) == mixture
    assert list(read) == sorted(mixture)


@pytest.mark.parametrize(("text", "code", "words"), REFUSED)
def test_what_is_no_mixture_is_refused_with_the_reason(text: str, code: str, words: str) -> None:
    with pytest.raises(InvalidInput) as told:
        parse_classes(text, CLASSES)
    assert told.value.code == code
    assert words in told.value.message


@pytest.mark.parametrize("text", ["0:0.333,1:0.333,2:0.333", "0:0.3335,1:0.3335,2:0.334"])
def test_sum_within_the_tolerance_becomes_1_and_stays_so(text: str) -> None:
    read = parse_classes(text, CLASSES)
    assert sum(read.values()) == pytest.approx(1, abs=1e-12)
    again = parse_classes(class_text(read), CLASSES)
    assert again == read
    _, weights = slots([read])
    assert abs(float(weights.sum(dtype=np.float32)) - 1) < 1e-6


def test_class_whose_name_has_a_colon_is_a_name() -> None:
    classes = Classes("odd", ("a", "7:1"))
    assert parse_classes("7:1", classes) == {1: 1.0}
    with pytest.raises(UnknownClass):
        parse_classes("b", classes)


def test_text_of_a_mixture_is_read_as_the_same() -> None:
    assert class_text({7: 1.0}) == "7"
    assert class_of({7: 1.0}) == 7
    assert class_text({7: 0.7, 9: 0.3}) == class_of({7: 0.7, 9: 0.3}) == "7:0.7,9:0.3"
    tiny = {3: 1e-05, 7: 0.99999}
    assert parse_classes(class_text(tiny), CLASSES) == tiny


def test_unused_slots_have_no_weight() -> None:
    class_id, class_weight = slots([{7: 0.75, 9: 0.25}, {3: 1.0}])
    assert class_id.tolist() == [[7, 9, 0, 0], [3, 0, 0, 0]]
    assert class_weight.tolist() == [[0.75, 0.25, 0, 0], [1, 0, 0, 0]]
    assert (class_id.dtype, class_weight.dtype) == (np.int64, np.float32)


@pytest.mark.anyio
async def test_mixture_goes_through_the_studio_and_says_what_it_is(
    run_app: Any, add_model: Any
) -> None:
    add_model(stages=3)
    async with run_app() as running:
        answer = await running.client.post(
            "/generate?class=3:0.25,1:0.75&seed=5&truncation_psi=0.5"
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-class"] == "1:0.75,3:0.25"
        assert "x-permalink" not in answer.headers
        told = read_parameters(answer.content)
        assert told["class"] == "1:0.75,3:0.25"
        assert told["class_name"] == "0.75 Sea_lion + 0.25 Ankle boot"
        (studio,) = running.engine.studios
        batch = studio.batches[-1]
        assert batch.class_id.tolist() == [[1, 3, 0, 0]]
        assert batch.class_weight.tolist() == [[0.75, 0.25, 0, 0]]
        assert batch.truncation_psi.tolist() == [0.5]
        assert np.array_equal(batch.z[0], np.random.RandomState(5).randn(6).astype(np.float32))
        assert np.array_equal(decode_png(answer.content), studio.run(batch).images[0])
        again = await running.client.post(
            "/generate",
            json={name: told[name] for name in ("class", "seed", "n", "truncation_psi")},
        )
        assert again.content == answer.content


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["1:1", "1:1.0,2:0", "1:0.9995"])
async def test_mixture_of_one_class_is_the_plain_image(
    run_app: Any, add_model: Any, text: str
) -> None:
    add_model(stages=3)
    async with run_app() as running:
        plain = await running.client.post("/generate?class=1&seed=5")
        mixed = await running.client.post(f"/generate?class={text}&seed=5")
        assert mixed.content == plain.content
        assert mixed.headers["x-permalink"] == plain.headers["x-permalink"]
        assert running.engine.studios == []


@pytest.mark.anyio
async def test_bad_mixture_is_told_over_http_with_the_sum(run_app: Any, add_model: Any) -> None:
    add_model(stages=3)
    async with run_app() as running:
        answer = await running.client.post("/generate?class=1:0.7,3:0.2&seed=5")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "bad_mixture")
        assert problem["sum"] == pytest.approx(0.9)
        assert problem["got"] == "1:0.7,3:0.2"
        assert "sum to 1" in problem["accepted"]
        assert len(running.engine.batches) == 2
