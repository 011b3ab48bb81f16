"""Requests that are really made, and the answers that they really get, as the reference shows them.

What differs from one time or machine to the next (ids, milliseconds, times, encoded pixels) is replaced by what it may look like.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from docs.reference.markdown import fence

ROOT = Path(__file__).resolve().parent.parent.parent
ADDRESS = "localhost:8000"
ADMIN_ADDRESS = "localhost:9000"

REQUEST_ID = "3f1c0a52e4b94d0c8f6f2f1f0c1a9b7e"
CREATED = 1790000000
UNTOLD = ("content-length", "vary")
MOST_LINES = 60  # of a body
MOST_ITEMS = 3  # of a list in a body


@dataclass(frozen=True, eq=False)
class Example:
    """One request to `method` `route`; `path` is `route` with its placeholders filled in, and the query."""

    method: str
    route: str
    path: str
    json: Any = None
    headers: Mapping[str, str] | None = None
    admin: bool = False


def examples(version: str) -> tuple[Example, ...]:
    """Return the examples, in the order in which they are shown.

    Args:
        version: of the model that ships.
    """
    generate, images, animate = "/generate", "/v1/images/generations", "/interpolate"
    permalink = f"/images/fashion-32@{version}/9/3.png"
    kept = "/images/{model}@{version}/{class}/{seed}.{format}"
    return (
        Example("POST", generate, "/generate?class=ankle+boot&seed=3&truncation_psi=0.7"),
        Example("POST", generate, generate, {"class": "7:0.7,9:0.3", "seed": 1, "n": 2, "response": "json"}),
        Example("POST", generate, "/generate?class=sneeker&seed=3"),
        Example("POST", generate, "/generate?class=7&seed=3&model=other"),
        Example("GET", generate, "/generate?class=9&seeds=0-3,42&format=webp"),
        Example("GET", generate, "/generate?class=9"),
        Example("GET", kept, permalink),
        Example("GET", kept, "/images/fashion-32@0123456789ab/9/3.png"),
        Example("POST", animate, "/interpolate?class=7&seed=1&seed=2&frames=24&loop=true"),
        Example("POST", animate, animate, {"class": ["sneaker", "ankle boot"], "seed": 1, "format": "zip", "frames": 8}),
        Example("POST", animate, "/interpolate?class=7&seed=1"),
        Example("POST", images, images, {"prompt": "ankle boot", "n": 2, "seed": 3}),
        Example("POST", images, images, {"prompt": "a photo of a cat"}),
        Example("GET", "/v1/models", "/v1/models"),
        Example("GET", "/v1/models/{model}", "/v1/models/fashion-32"),
        Example("GET", "/v1/models/{model}", "/v1/models/gpt-image-1"),
        Example("GET", "/classes", "/classes"),
        Example("GET", "/models", "/models"),
        Example("GET", "/healthz", "/healthz"),
        Example("GET", "/readyz", "/readyz"),
        Example("GET", "/metrics", "/metrics"),
        Example("GET", "/config", "/config", admin=True),
        Example("POST", "/reload", "/reload", admin=True),
    )  # fmt: skip


@asynccontextmanager
async def clients() -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, Any]]:
    """Serve the model that ships in this process; yield a client, one of the admin port, and the application."""
    from cat_serve.settings import Settings
    from cat_serve.web.admin import create_admin_app
    from cat_serve.web.app import create_app

    settings = Settings(model_repository=ROOT / "model_repository", threads=1)
    app = create_app(settings)
    admin = create_admin_app(app.state.service, Settings())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{ADDRESS}") as one,
        httpx.AsyncClient(transport=httpx.ASGITransport(admin), base_url=f"http://{ADDRESS}") as two,
    ):  # fmt: skip
        await app.state.service.settled.wait()
        yield one, two, app


async def shown(example: Example, client: httpx.AsyncClient) -> str:
    """Make the request, and return it and its answer as blocks of Markdown."""
    answer = await client.request(
        example.method, example.path, json=example.json, headers=example.headers
    )
    return fence("sh", curl(example, answer)) + "\n\n" + fence("http", told(answer))


def curl(example: Example, answer: httpx.Response) -> str:
    """Return the command line that makes the request; a file goes into a file."""
    words = ["curl"] + (["-X", example.method] if example.method != "GET" and example.json is None else [])  # fmt: skip
    target = (ADMIN_ADDRESS if example.admin else ADDRESS) + example.path
    words.append(target)
    for name, value in (example.headers or {}).items():
        words += ["-H", f"{name}: {value}"]
    if example.json is not None:
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(example.json)]
    kind = answer.headers.get("content-type", "")
    if kind.startswith("image/") or kind == "application/zip":
        words += ["-o", "answer." + kind.rsplit("/", 1)[1]]
    return shlex.join(words)


def told(answer: httpx.Response) -> str:
    """Return an answer's status, headers and body as they are read by people."""
    lines = [f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"]
    lines += [
        f"{name.title()}: {_header(name, value)}"
        for name, value in sorted(answer.headers.items())
        if name not in UNTOLD
    ]
    return "\n".join([*lines, "", *_body(answer)]).rstrip()


def _header(name: str, value: str) -> str:
    if name == "server-timing":
        return re.sub(r"dur=[0-9.]+", "dur=1.23", value)
    return REQUEST_ID if name == "x-request-id" else value


def _body(answer: httpx.Response) -> list[str]:
    kind = answer.headers.get("content-type", "")
    if "json" in kind:
        content = json.dumps(_short(answer.json()), indent=2, ensure_ascii=False)
    elif kind.startswith("text/plain"):
        lines = [line for line in answer.text.splitlines() if line.startswith("# ")]
        content = "\n".join([*lines[:6], "..."])
    else:
        return [f"(a file of {kind})"]
    lines = content.splitlines()
    return lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], "..."]


def _short(value: Any, name: str = "") -> Any:
    """Shorten lists and encoded files, and replace what differs from time to time."""
    if name == "request_id":
        return REQUEST_ID
    if name == "created":
        return CREATED
    if name in ("base64", "b64_json") and isinstance(value, str):
        return value[:12] + "..."
    if isinstance(value, dict):
        return {key: _short(each, key) for key, each in value.items()}
    if isinstance(value, list):
        kept = [_short(each) for each in value[:MOST_ITEMS]]
        more = len(value) - len(kept)
        return [*kept, f"... and {more} more"] if more else kept
    return value
