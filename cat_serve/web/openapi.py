"""What this server has, in its OpenAPI document: the classes as an enumeration, and its limits as bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cat_serve import mixtures, seeds
from cat_serve.surface import ImageService
from cat_serve.wanted import ServedModel
from cat_serve.web.asking import LARGEST
from cat_serve.web.authorization import OPEN_PATHS
from cat_serve.web.dependencies import openai_problems, problems
from cat_serve.web.openai_errors import PREFIX
from cat_serve.web.path_schemas import OF_KEYS
from cat_serve.web.schemas import CLASS_FORMAT, MAX_NAME_CHARACTERS, SEEDS_FORMAT

SCHEMAS = "#/components/schemas/"
NULL = {"type": "null"}
MOST_IN_EXAMPLE = 11  # seeds, as in 0-9,42
FASTAPI_ERROR = "HTTPValidationError"
REQUIRED = {
    "GenerateParameters": "class",
    "InterpolateParameters": "class",
    "ImagesParameters": "prompt",
}
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
    for parameter in _parameters(document):
        _drop_null(parameter["schema"])  # there is none in an address or a header
    for name in OF_KEYS:
        _one_or_several(parts["InterpolateParameters"]["properties"][name])
    _drop_unused(document)
    _require(document)
    _declare_models(document, service.models)
    _bound(document, "n", service.limits.max_images_per_request)
    _bound(document, "frames", service.limits.most_frames)
    stages = max(model.artefact.manifest.stages for model in service.models.values())
    _bound(document, "stage", stages)
    _bound(document, "class", most - 1)
    _fit_examples(document, service.limits.max_images_per_request)


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


def _require(document: dict[str, Any]) -> None:
    """Say what is required: the code refuses its absence itself, in better words."""
    parts = document["components"]["schemas"]
    for body, name in REQUIRED.items():
        parts[body]["required"] = [name]
        _drop_null(parts[body]["properties"][name])
    for parameter in document["paths"]["/generate"]["get"]["parameters"]:
        if parameter["name"] == "class":
            parameter["required"] = True


def _declare_models(document: dict[str, Any], models: Mapping[str, ServedModel]) -> None:
    """Name the models, their versions, the sizes of their images and the shapes of their latents."""
    manifests = [model.artefact.manifest for model in models.values()]
    sizes = dict.fromkeys(
        f"{width}x{height}" for height, width in (m.image_size for m in manifests)
    )
    own: dict[str, list[dict[str, Any]]] = {
        "model": [{"type": "string", "enum": list(models)}],
        "version": [{"type": "string", "enum": [m.artefact.version for m in models.values()]}],
        "size": [{"type": "string", "enum": ["auto", *sizes]}],
        "z": [_latent(shape) for shape in dict.fromkeys(m.z_shape for m in manifests)],
    }
    for name, kinds in own.items():
        for schema in _declared(document, name):
            was_null = any(kind == NULL for kind in schema.pop("anyOf", ()))
            for word in ("type", "minLength", "maxLength", "items"):
                schema.pop(word, None)
            schema["anyOf"] = [*kinds, NULL] if was_null else kinds


def _fit_examples(document: dict[str, Any], most: int) -> None:
    """Show only what a server with this limit makes."""
    for schema in _declared(document, "n"):
        if schema.get("examples"):
            schema["examples"] = [min(most, example) for example in schema["examples"]]
    for schema in _declared(document, "seeds"):
        if schema.get("examples"):
            schema["examples"] = [seeds_example(most)]
    for operations in document["paths"].values():
        body = operations.get("post", {}).get("requestBody", {}).get("content", {})
        shown = body.get("application/json", {}).get("examples", {})
        for title in [t for t, e in shown.items() if e["value"].get("n", 1) > most]:
            del shown[title]
        for example in shown.values():
            if "seeds" in example["value"]:
                example["value"] = {**example["value"], "seeds": seeds_example(most)}


def seeds_example(most: int) -> str:
    """Return seeds of at most so many images."""
    if most == 1:
        return "42"
    last = min(most, MOST_IN_EXAMPLE) - 2
    return f"0-{last},42" if last else "0,42"


def _latent(shape: Sequence[int]) -> dict[str, Any]:
    """Return the schema of nested lists of float32."""
    schema: dict[str, Any] = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    for size in reversed(shape):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return schema


def declare_keys(document: dict[str, Any], schemes: Mapping[str, Any] | None) -> None:
    """Say which addresses want an API key, and with `schemes` how it is given; without keys nothing is a 401."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if schemes is None or path in OPEN_PATHS:
                operation["responses"].pop("401", None)
                operation.pop("security", None)
                if schemes is not None:
                    operation["security"] = []
            elif "401" not in operation["responses"]:
                described = openai_problems if path.startswith(PREFIX) else problems
                operation["responses"]["401"] = described(401)[401]
    if schemes is not None:
        document["components"]["securitySchemes"] = dict(schemes)
        document["security"] = [{name: []} for name in schemes]


def _one_or_several(schema: dict[str, Any]) -> None:
    """Take instead of a list also what would be its only item."""
    lists = [kind for kind in schema["anyOf"] if kind.get("type") == "array"]
    schema["anyOf"] = [kind["items"] for kind in lists] + schema["anyOf"]


def _drop_unused(document: dict[str, Any]) -> None:
    """Take out the errors of FastAPI, which this service answers in its own way."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if FASTAPI_ERROR in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in (FASTAPI_ERROR, "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _drop_null(schema: dict[str, Any]) -> None:
    """Let a schema accept no null; of two kinds that leaves one, which takes the place of the choice."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != NULL]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= {**kinds[0], **schema}
    elif kinds:
        schema["anyOf"] = kinds


def _parameters(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every parameter of every address."""
    for operations in document["paths"].values():
        for operation in operations.values():
            yield from operation.get("parameters", ())


def _declared(document: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yield the schema of whatever may be asked by this name: in the query, the path or a body."""
    for parameter in _parameters(document):
        if parameter["name"] == name and parameter["in"] in ("query", "path"):
            yield parameter["schema"]
    for part in document["components"]["schemas"].values():
        if name in part.get("properties", {}) and part.get("additionalProperties") is False:
            yield part["properties"][name]


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
    """Give every number called `name` its largest value."""
    for schema in _declared(document, name):
        if isinstance(schema.get("default"), int):
            schema["default"] = min(schema["default"], most)
        for kind in schema.get("anyOf", [schema]):
            if kind.get("type") == "integer":
                kind["maximum"] = max(most, kind.get("minimum", most))
