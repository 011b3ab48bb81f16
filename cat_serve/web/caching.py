"""What may be kept by whom: entity tags, conditional requests, and how long an address stays true."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

from fastapi import Request, Response

from cat_serve import __version__
from cat_serve.images import Format
from cat_serve.surface import ImageService
from cat_serve.wanted import ImageRequest
from cat_serve.web.answers import Form, facts

YEAR_S = 31_536_000
TAG_CHARACTERS = 32

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def sharing(request: Request) -> Literal["public", "private"]:
    """Return who may keep an answer: everybody, or with API keys only whoever had one."""
    return "private" if request.app.state.has_keys else "public"


def revalidated(request: Request) -> str:
    """Return the Cache-Control of an answer that may be kept, and must be asked for again before it is used."""
    return "no-cache" if sharing(request) == "public" else "private, no-cache"


def immutable(request: Request) -> str:
    """Return the Cache-Control of an answer whose address names the artefact, so that it never changes."""
    return f"{sharing(request)}, max-age={YEAR_S}, immutable"


def entity_tag(
    service: ImageService, asked: ImageRequest, image_format: Format, form: Form
) -> str | None:
    """Return the ETag of an answer: of model version, all parameters, and what computes and encodes it.

    It is strong where equal requests get equal bytes, else weak. None while the engine is not loaded.
    """
    name = asked.model.name
    if (engine := service.engine(name)) is None:
        return None
    what = {
        **facts(asked),
        "format": image_format,
        "response": form,
        "engine": [engine.name, engine.precision, __version__],
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    weak = service.determinism(name, asked.needs_studio) != "bytes"
    return "W/" * weak + f'"{digest[:TAG_CHARACTERS]}"'


def not_modified(request: Request, tag: str | None, caching: str) -> Response | None:
    """Return the 304 for a client that has the answer already (RFC 9110, 13.1.2), else None."""
    given = ",".join(request.headers.getlist("if-none-match")).strip()
    if tag is None or not given:
        return None
    known = _TAG.findall(given)
    if given != "*" and tag.removeprefix("W/") not in known:
        return None
    return Response(status_code=304, headers={"ETag": tag, "Cache-Control": caching})
