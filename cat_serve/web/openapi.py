"""What this server has, in its OpenAPI document: the classes as an enumeration, and its limits as bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cat_serve import mixtures, seeds
from cat_serve.surface import ImageService
from cat_serve.web.schemas import CLASS_FORMAT, MAX_NAME_CHARACTERS, SEEDS_FORMAT

SCHEMAS = "#/components/schemas/"
BOUNDS = {"ge": "minimum", "le": "maximum"}  # pydantic's words where a validator stands between


def declare_served(document: dict[str, Any], service: ImageService) -> None:
    """Write classes, mixtures, seeds, models and limits of `service` into the document, in place."""
    names = dict.fromkeys(name for model in service.models.values() for name in model.classes.names)
    most = max(len(model.classes) for model in service.models.values())
    parts = document["components"]["schemas"]
    parts["ClassName"] = {
        "type": "string",
        "description": "A class of a model that is served here, by index or by name.",
        "enum": [*map(str, range(most)), *(name for name in names if not name.isdigit())],
    }
    parts["ClassIndex"] = {"type": "integer", "minimum": 0, "maximum": most - 1}
    parts["ClassMixture"] = {
        "type": "string",
        "format": "class-mixture",
        "description": f"{mixtures.ACCEPTED[0].upper()}{mixtures.ACCEPTED[1:]}.",
        "pattern": mixtures.PATTERN,
        "maxLength": MAX_NAME_CHARACTERS,
        "examples": [mixture_example(most)],
    }
    for schema, in_body in _schemas(document):
        _declare(schema, in_body)
    _require_class(document)
    _bound(document, "n", service.limits.max_images_per_request)
    _bound(document, "frames", service.limits.most_frames)
    stages = max(model.artefact.manifest.stages for model in service.models.values())
    _bound(document, "stage", stages)


def mixture_example(classes: int) -> str:
    """Return a mixture that a model with so many classes takes."""
    return f"0:0.7,{classes - 1}:0.3" if classes > 1 else "0:1.0"


def _declare(schema: dict[str, Any], in_body: bool) -> None:
    """Fill in what the format of a string stands for; write bounds as JSON Schema does."""
    for ours, name in BOUNDS.items():
        if ours in schema:
            schema[name] = schema.pop(ours)
    if schema.get("format") == CLASS_FORMAT:
        for name in ("type", "format", "maxLength", "minLength"):
            schema.pop(name, None)
        kinds = ["ClassName", "ClassMixture"] + ["ClassIndex"] * in_body
        schema["anyOf"] = [{"$ref": SCHEMAS + kind} for kind in kinds]
    elif schema.get("format") == SEEDS_FORMAT:
        kinds = schema.get("anyOf", [schema])
        next(kind for kind in kinds if kind.get("type") == "string")["pattern"] = seeds.PATTERN


def _require_class(document: dict[str, Any]) -> None:
    """Say where the class is required: the code refuses its absence itself, in better words."""
    body = document["components"]["schemas"]["GenerateParameters"]
    body["required"] = ["class"]
    _not_null(body["properties"]["class"])
    for parameter in document["paths"]["/generate"]["get"]["parameters"]:
        if parameter["name"] == "class":
            parameter["required"] = True
            _not_null(parameter["schema"])


def _not_null(schema: dict[str, Any]) -> None:
    kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    schema["anyOf"] = kinds[0]["anyOf"]


def _schemas(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield every schema in the document, and whether it is of a body."""
    for part in list(document["components"]["schemas"].values()):
        yield from _within(part, True)
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                yield from _within(parameter["schema"], False)


def _within(schema: Any, in_body: bool) -> Iterator[tuple[dict[str, Any], bool]]:
    if isinstance(schema, dict):
        yield schema, in_body
        for value in list(schema.values()):
            yield from _within(value, in_body)
    elif isinstance(schema, list):
        for value in schema:
            yield from _within(value, in_body)


def _bound(document: dict[str, Any], name: str, most: int) -> None:
    """Give every parameter called `name` its largest value."""
    wheres = [
        parameter["schema"]
        for operations in document["paths"].values()
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
        if parameter["name"] == name and parameter["in"] == "query"
    ]
    for part in document["components"]["schemas"].values():
        if name in part.get("properties", {}) and part.get("additionalProperties") is False:
            wheres.append(part["properties"][name])
    for schema in wheres:
        for kind in schema.get("anyOf", [schema]):
            if kind.get("type") == "integer":
                kind["maximum"] = max(most, kind.get("minimum", most))
