"""The reference of the HTTP interface, from the OpenAPI document and from examples that are really made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from docs.reference.examples import Example
from docs.reference.markdown import GENERATED, code, page, slug, table
from docs.reference.schemas import default, kind, names_in, properties

Document = Mapping[str, Any]

MOST_CODES = 6  # more are of every route and say nothing of this one

INTRODUCTION = """# The HTTP interface

{generated}

Every route with its parameters, headers and answers, and every code of an error. The bounds are those of a server with the
model that ships and the settings it starts with; `/openapi.json` of a server has its own. [The guide](serving.md) says what is
promised and why, [the glossary](glossary.md) what the words mean. In the examples ids, times and milliseconds are
placeholders; all else was answered as it stands, long lists cut short.

With API keys every route but `/`, `/healthz` and `/readyz` wants one, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.
Every answer has `X-Request-Id`. Every GET route answers HEAD, too."""

ERRORS = """## Errors

Errors are `application/problem+json` (RFC 9457); `code` is stable, and the list is closed. Under `/v1` they have OpenAI's
shape, [OpenAIErrorAnswer](#openaierroranswer), and what is a 422 elsewhere is a 400 there. [What to do about
each](troubleshooting.md#it-answers-with-an-error)."""

ADMIN = """## The admin port

With `--admin-port` the following routes, `/metrics`, `/healthz` and `/readyz` are served on a port of their own. It asks for no
key: keep its address to yourself."""


def api_page(document: Document, blocks: Mapping[Example, str]) -> str:
    """Return docs/api.md.

    Args:
        document: the OpenAPI document.
        blocks: what every example is shown as.
    """
    from cat_serve.web.problems import PROBLEMS

    require_examples(document, list(blocks))
    routes = [
        route_section(method.upper(), path, operation, blocks)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    rows = [(code(name), str(each.status), each.title) for name, each in PROBLEMS.items()]
    return page(
        INTRODUCTION.format(generated=GENERATED),
        contents(document),
        *routes,
        ADMIN,
        *(shown_admin(each, block) for each, block in blocks.items() if each.admin),
        ERRORS,
        table(("code", "status", "meaning"), rows),
        *schema_sections(document),
    )


def contents(document: Document) -> str:
    """Return a table of the routes."""
    rows = [
        (f"[`{method.upper()} {path}`](#{slug(f'{method.upper()} {path}')})", purpose(operation))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return table(("route", "does"), rows)


def purpose(operation: Document) -> str:
    """Return what a route does in one sentence."""
    described: str = operation.get("description", operation["summary"])
    return described.split("\n\n")[0]


def route_section(
    method: str, path: str, operation: Document, blocks: Mapping[Example, str]
) -> str:
    """Return the section of one route."""
    own = [block for each, block in blocks.items() if (each.method, each.route) == (method, path)]
    return page(
        f"## {method} {path}",
        operation.get("description", operation["summary"]),
        parameter_table(operation.get("parameters", [])),
        body(operation.get("requestBody")),
        table(("status", "type", "answer"), answers(operation)),
        headers_table(operation),
        *own,
    )


def parameter_table(parameters: Sequence[Document]) -> str:
    """Return a table of what stands in the address or in a header."""
    rows = [
        (
            code(each["name"]) + (" (required)" if each.get("required") else ""),
            each["in"],
            kind(each["schema"]),
            default(each["schema"]),
            each.get("description", ""),
        )
        for each in parameters
    ]
    return table(("parameter", "in", "accepts", "if absent", "meaning"), rows)


def body(request: Document | None) -> str:
    """Say what the body may be."""
    if request is None:
        return ""
    names = sorted(set(names_in(request["content"]["application/json"]["schema"])))
    linked = " or ".join(f"[{name}](#{slug(name)})" for name in names)
    return f"Body, `application/json`: {linked}."


def answers(operation: Document) -> Iterator[tuple[str, str, str]]:
    """Yield status, media types and meaning of every answer; of an error only its codes, whose meaning stands in one place."""
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        linked = sorted({name for each in content.values() for name in names_in(each)})
        schemas = ", ".join(f"[{name}](#{slug(name)})" for name in linked)
        meaning = answer["description"].replace("Successful Response", "")
        if status >= "400":
            codes = re.findall(r"`\w+`(?=: )", meaning)
            meaning = ", ".join(codes) if len(codes) <= MOST_CODES else "see [errors](#errors):"
        yield status, ", ".join(map(code, content)), " ".join(filter(None, (meaning, schemas)))


def headers_table(operation: Document) -> str:
    """Return a table of the headers of a success."""
    named = operation["responses"]["200"].get("headers", {})
    rows = [(code(name), each["description"]) for name, each in named.items()]
    return table(("header", "meaning"), rows)


def shown_admin(example: Example, block: str) -> str:
    """Return the section of a route that only the admin port has."""
    from cat_serve.web import admin

    says = {"/config": "Show every setting and where it comes from; secrets are masked.",
            "/reload": (admin.reload.__doc__ or "").splitlines()[0]}  # fmt: skip
    return page(f"### {example.method} {example.route}", says[example.route], block)


def schema_sections(document: Document) -> Iterator[str]:
    """Yield what is sent and answered in JSON, object by object."""
    yield "## Objects"
    for name, schema in sorted(document["components"]["schemas"].items()):
        what = schema.get("description", "")
        inner = properties(schema) if "properties" in schema else f"{kind(schema)}."
        yield page(f"### {name}", what, inner)


def require_examples(document: Document, every: Sequence[Example]) -> None:
    """Refuse a route without an example, and an example of no route.

    Raises:
        ValueError: naming them.
    """
    routes = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    shown_routes = {(each.method, each.route) for each in every if not each.admin}
    if wrong := routes ^ shown_routes:
        raise ValueError(f"not both a route and an example: {sorted(wrong)}")
