"""The OpenAPI document: what this server has, bounds that are true, and examples that work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cat_serve.latents import MAX_SEED
from cat_serve.mixtures import parse_classes
from cat_serve.web.schemas import EXAMPLES

pytestmark = pytest.mark.anyio

NAMES = ("t-shirt", "trouser", "7th thing", "dress", "coat", "sandal", "shirt", "Sneaker", "bag", "ankle boot")  # fmt: skip


@pytest.fixture
async def server(run_app: Any, add_model: Any) -> AsyncIterator[Any]:
    """A model of the shape of the one that ships."""
    add_model("fashion-32", NAMES, z_shape=(64,), stages=3)
    add_model("zoo", ("lion", "tiger"))
    async with run_app(max_images_per_request=20) as running:
        yield running


@pytest.fixture
async def document(server: Any) -> Any:
    return (await server.client.get("/openapi.json")).json()


def parameters(document: Any, path: str, method: str = "get") -> dict[str, Any]:
    return {each["name"]: each for each in document["paths"][path][method]["parameters"]}


def validator(document: Any, schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def accepts(document: Any, schema: Any, value: Any) -> bool:
    return bool(validator(document, schema).is_valid(value))


async def test_classes_are_an_enumeration_and_each_is_accepted(server: Any, document: Any) -> None:
    listed = document["components"]["schemas"]["ClassName"]["enum"]
    assert listed == [*map(str, range(10)), *NAMES, "lion", "tiger"]
    model = server.service.model(None)
    for text in listed[:-2]:
        assert len(parse_classes(text, model.classes)) == 1


@pytest.mark.parametrize("method", ["get", "post"])
async def test_parameters_have_the_bounds_of_this_server(document: Any, method: str) -> None:
    own = parameters(document, "/generate", method)
    for name, good, bad in (
        ("class", ["0", "9", "Sneaker", "7:0.7,9:0.3"], ["10", "sneakers", "7:a", ""]),
        ("seed", [0, MAX_SEED], [-1, MAX_SEED + 1, 1.5]),
        ("n", [1, 20], [0, 21]),
        ("stage", [1, 3], [0, 4]),
        ("seeds", ["5", "0-9,42"], ["", "a", "1-", "1,,2"]),
        ("truncation_psi", [0, 0.5, 1], [-0.1, 1.1]),
        ("format", ["png", "npy"], ["gif"]),
        ("response", ["zip"], ["tar"]),
    ):
        for value in good:
            assert accepts(document, own[name]["schema"], value), (name, value)
        for value in bad:
            assert not accepts(document, own[name]["schema"], value), (name, value)
    assert own["class"]["required"] is (method == "get")
    assert "z" not in own


async def test_bounds_of_the_document_are_the_servers(server: Any) -> None:
    assert (await server.client.post("/generate?class=0&n=20")).status_code == 200
    assert (await server.client.post("/generate?class=0&n=21")).status_code == 422
    assert (await server.client.post("/generate?class=0&stage=3")).status_code == 200
    assert (await server.client.post("/generate?class=0&stage=4")).status_code == 422


async def test_body_says_the_same_as_the_query(document: Any) -> None:
    body = {"$ref": "#/components/schemas/GenerateParameters"}
    for value in ({"class": 9}, {"class": "bag", "z": [0.5] * 64}, {"class": "7:1", "n": 20}):
        assert accepts(document, body, value), value
    for value in ({}, {"class": 10}, {"class": 1, "n": 21}, {"class": 1, "seed": -1}, {"class": 1, "steps": 2}):  # fmt: skip
        assert not accepts(document, body, value), value


@pytest.mark.parametrize("name", list(EXAMPLES))
async def test_example_fits_the_document_and_works(server: Any, document: Any, name: str) -> None:
    shown = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    sent = shown["examples"][name]["value"]
    body = {"$ref": "#/components/schemas/GenerateParameters"}
    validator(document, body).validate(sent)
    answer = await server.client.post("/generate", json=sent)
    assert answer.status_code == 200, answer.text
    content = document["paths"]["/generate"]["post"]["responses"]["200"]["content"]
    assert answer.headers["content-type"] in content


async def test_every_parameter_of_generate_has_an_example(document: Any) -> None:
    sent = [example["value"] for example in EXAMPLES.values()]
    for method in ("get", "post"):
        for name, parameter in parameters(document, "/generate", method).items():
            schema = parameter["schema"]
            assert schema["examples"], name
            for value in schema["examples"]:
                assert accepts(document, schema, value), (name, value)
    assert any(":" in str(value["class"]) for value in sent)
    for name in ("z", "seeds", "stage", "response"):
        assert any(name in value for value in sent), name


async def test_answers_of_json_fit_their_schema(server: Any, document: Any) -> None:
    schema = {"$ref": "#/components/schemas/ImagesAnswer"}
    for sent in (
        {"class": 1, "seed": 1, "n": 2},
        {"class": "1:0.5,2:0.5", "seeds": "1,5", "stage": 1},
        {"class": 1, "z": [0.25] * 64},
    ):
        told = await server.client.post("/generate", json={**sent, "response": "json"})
        validator(document, schema).validate(told.json())


async def test_headers_of_answers_are_described(server: Any, document: Any) -> None:
    described: set[str] = set()
    for method in ("get", "post"):
        described |= document["paths"]["/generate"][method]["responses"]["200"]["headers"].keys()
    known = {name.lower() for name in described} | {"content-length", "content-type"}
    for query in ("class=1&seed=1", "class=1&seeds=1,5", "class=1&seed=1&n=3"):
        answer = await server.client.get(f"/generate?{query}")
        assert set(answer.headers) <= known
    answer = await server.client.post("/generate", json={"class": 1, "z": [0.25] * 64})
    assert set(answer.headers) <= known
    assert "304" in document["paths"]["/generate"]["get"]["responses"]


async def test_permalinks_are_described_with_their_bounds(document: Any) -> None:
    path = "/images/{model}@{version}/{class}/{seed}.{format}"
    own = parameters(document, path)
    assert not accepts(document, own["seed"]["schema"], MAX_SEED + 1)
    assert not accepts(document, own["format"]["schema"], "gif")
    assert not accepts(document, own["stage"]["schema"], 4)
    responses = document["paths"][path]["get"]["responses"]
    assert {"200", "304", "404"} <= responses.keys()
    assert "unknown_version" in responses["404"]["description"]
