"""The playground: a page at `/` and its files under /static, read once and served from memory.

The page needs no build step and no other host; its Content-Security-Policy makes the browser hold it to that.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

PAGE = "index.html"
STATIC_PATH = "/static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Images are blobs: they are fetched, so that a key can travel with the request and its headers can be read.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask again each time: a new version shows at once, an old one costs a 304
}

router = APIRouter(include_in_schema=False)


class File(NamedTuple):
    """A file of the page as it is served."""

    content: bytes
    media_type: str
    etag: str


@cache
def files() -> dict[str, File]:
    """Return the files of the page by name; what is not listed here cannot be asked for."""
    found = {}
    for entry in resources.files(__package__).joinpath("playground").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in MEDIA_TYPES:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = File(content, MEDIA_TYPES[suffix], etag)
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Show the playground."""
    return _answer(request, files()[PAGE])


@router.api_route(STATIC_PATH + "/{name}", methods=["GET", "HEAD"])
async def static(request: Request, name: str) -> Response:
    """Give one file of the playground."""
    file = files().get(name)
    if file is None or name == PAGE:
        raise HTTPException(404)
    return _answer(request, file)


def _answer(request: Request, file: File) -> Response:
    """Return the file, or 304 if the browser has it."""
    headers = {**HEADERS, "ETag": file.etag}
    if _has(request.headers.get("If-None-Match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def _has(if_none_match: str, etag: str) -> bool:
    """Say whether an If-None-Match header names `etag`; weak tags count (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]
