from __future__ import annotations

import re
import unicodedata
from typing import Literal

import pytest

from cat_serve.classes import Classes
from cat_serve.errors import InvalidInput, UnknownClass

GARMENTS = Classes("fashion", ("T-shirt/top", "Trouser", "Sneaker", "Bag", "Ankle boot"))
MANY = Classes("imagenet", [f"thing {i}" for i in range(1000)])


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("0", 0),
        ("04", 4),
        (" 4 ", 4),
        ("Ankle boot", 4),
        ("ankle_boot", 4),
        ("ANKLE--BOOT", 4),
        (" ankle   boot ", 4),
        ("t shirt/top", 0),
        ("ankle\u2010boot", 4),  # as word processors write it
        ("ankle\u00a0boot", 4),
    ],
)
def test_index_and_every_spelling_of_a_name_are_found(text: str, index: int) -> None:
    assert GARMENTS.index_of(text) == index


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize(
    "name", ["\u00c4pfel", "na\u00efve caf\u00e9", "\u0130stanbul", "\ufb01nch", "Stra\u00dfe"]
)
def test_every_unicode_form_of_a_name_is_found(
    name: str, form: Literal["NFC", "NFD", "NFKC", "NFKD"]
) -> None:
    for other in (form, "NFC", "NFD"):
        classes = Classes("m", ("x", unicodedata.normalize(other, name)))
        assert classes.index_of(unicodedata.normalize(form, name)) == 1
        assert classes.index_of(unicodedata.normalize(form, name.lower())) == 1


def test_digits_are_an_index_even_if_a_class_is_called_so() -> None:
    assert Classes("digits", ("7", "1", "0")).index_of("1") == 1


def test_index_out_of_range_names_all_classes_of_a_small_model() -> None:
    with pytest.raises(UnknownClass) as caught:
        GARMENTS.index_of("207")
    error = caught.value
    for index, name in enumerate(GARMENTS.names):
        assert f"{index} {name}" in error.message
    assert error.hint is not None
    assert "class 207" in error.hint
    assert "cat-m2-256" in error.hint
    assert "has none" in error.hint
    assert error.details["got"] == 207
    assert error.details["models_with_class"] == []
    assert [entry["index"] for entry in error.details["classes"]] == [0, 1, 2, 3, 4]


def test_index_out_of_range_names_the_models_that_have_it() -> None:
    with pytest.raises(UnknownClass) as caught:
        GARMENTS.index_of("207", [GARMENTS, MANY])
    assert caught.value.details["models_with_class"] == ["imagenet"]
    assert "imagenet" in str(caught.value.hint)


def test_of_many_classes_only_the_first_and_the_count_are_named() -> None:
    with pytest.raises(UnknownClass) as caught:
        MANY.index_of("1000")
    assert "1000 classes" in caught.value.message
    assert "thing 0" in caught.value.message
    assert "thing 999" not in caught.value.message
    assert len(caught.value.details["classes"]) == 5
    assert "cat-m2-256" not in str(caught.value.hint)


@pytest.mark.parametrize("text", ["-1", "+9", "9" * 100])
def test_any_integer_out_of_range_is_told_as_an_index(text: str) -> None:
    with pytest.raises(UnknownClass, match=r"has no class [+-]?[0-9]+:"):
        GARMENTS.index_of(text)


@pytest.mark.parametrize(("text", "index"), [("-0", 0), ("+4", 4), ("-00", 0)])
def test_index_with_a_sign_is_none_and_the_error_says_so(text: str, index: int) -> None:
    with pytest.raises(UnknownClass, match=f"has no class {re.escape(text)}:") as caught:
        GARMENTS.index_of(text, [GARMENTS])
    assert caught.value.hint == f"an index has no sign: {index}"
    assert caught.value.details["got"] == text
    assert caught.value.details["models_with_class"] == []


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [("sneeker", "Sneaker"), ("boot", "Ankle boot"), ("tshirt top", "T-shirt/top"), ("boots", "Ankle boot"),
     ("a photo of sneakers", "Sneaker")],
)  # fmt: skip
def test_misspelt_name_gets_near_misses(text: str, suggestion: str) -> None:
    with pytest.raises(UnknownClass) as caught:
        GARMENTS.index_of(text)
    assert suggestion in caught.value.details["suggestions"]
    assert suggestion in str(caught.value.hint)


def test_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(UnknownClass) as caught:
        GARMENTS.index_of("xyzzy")
    assert caught.value.details["suggestions"] == []


def test_name_of_two_classes_is_an_error_with_both_indices() -> None:
    with pytest.raises(InvalidInput) as caught:
        Classes("birds", ("crane", "owl", "Crane")).index_of("crane")
    assert caught.value.code == "ambiguous_class"
    assert caught.value.details["accepted"] == [0, 2]
    assert "0 and 2" in caught.value.message
