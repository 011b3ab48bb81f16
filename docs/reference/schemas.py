"""JSON Schemas of the OpenAPI document in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docs.reference.markdown import code, slug, table

Schema = Mapping[str, Any]

MOST_VALUES = 12  # of an enumeration; a model may have a thousand classes
MOST_PATTERN = 40
PLURALS = {"integer": "integers", "number": "numbers", "string": "texts", "array": "lists"}


def kind(schema: Schema) -> str:
    """Say what a value may be."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{slug(name)})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(each) for each in schema["anyOf"]))
    if "const" in schema:
        return code(_value(schema["const"]))
    if "enum" in schema:
        return _enumeration(schema["enum"])
    words = {"integer": _number, "number": _number, "string": _text, "array": _list}
    describe = words.get(schema.get("type", ""))
    if describe is not None:
        return describe(schema)
    if isinstance(more := schema.get("additionalProperties"), dict):
        return f"object of {kind(more)} by name"
    return str(schema.get("type", "anything"))


def default(schema: Schema) -> str:
    """Return the default; nothing where there is none, or where it only says that nothing was given."""
    value = schema.get("default")
    return "" if value is None else code(_value(value))


def properties(schema: Schema) -> str:
    """Return a table of an object's members."""
    required = set(schema.get("required", ()))
    return table(
        ("member", "", "default", "meaning"),
        (
            (
                f"`{name}`" + (" (required)" if name in required else ""),
                kind(part),
                default(part),
                str(part.get("description", "")),
            )
            for name, part in schema["properties"].items()
        ),
    )


def names_in(value: Any) -> Iterator[str]:
    """Yield the names of the schemas that a part of the document refers to."""
    if isinstance(value, Mapping):
        if "$ref" in value:
            yield value["$ref"].rsplit("/", 1)[1]
        for each in value.values():
            yield from names_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from names_in(each)


def _enumeration(values: list[Any]) -> str:
    shown = ", ".join(code(_value(value)) for value in values[:MOST_VALUES])
    more = len(values) - MOST_VALUES
    return shown if more <= 0 else f"{shown} and {more} more"


def _number(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    bounds = [_value(each) for each in (least, most) if each is not None]
    if len(bounds) == 2:
        return f"{schema['type']} {bounds[0]} .. {bounds[1]}"
    word = "" if not bounds else f" {'>=' if least is not None else '<='} {bounds[0]}"
    return f"{schema['type']}{word}"


def _text(schema: Schema) -> str:
    if schema.get("format") == "binary":
        return "bytes"
    pattern = schema.get("pattern", "")
    if 0 < len(pattern) <= MOST_PATTERN:
        return f"text like {code(pattern)}"
    longest = schema.get("maxLength")
    return "text" if longest is None else f"text of at most {longest:,} characters"


def _list(schema: Schema) -> str:
    if "prefixItems" in schema:
        return "[" + ", ".join(kind(each) for each in schema["prefixItems"]) + "]"
    items = schema.get("items", {})
    inner = PLURALS.get(items.get("type", ""), "") if items.keys() <= {"type"} else kind(items)
    sizes = [f"{word} {schema[key]}" for key, word in
             (("minItems", "at least"), ("maxItems", "at most")) if key in schema]  # fmt: skip
    return "list" + (f" of {inner}" if inner else "") + (f", {', '.join(sizes)}" if sizes else "")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
