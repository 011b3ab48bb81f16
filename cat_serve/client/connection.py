"""What both clients are set up with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx

from cat_serve import __version__
from cat_serve.errors import InvalidInput

DEFAULT_URL = "http://127.0.0.1:8000"
DEADLINE_S = 60.0


class ClientsOwn:
    """What a call's deadline is if none is given: that of its client. None cannot say so, it means no deadline."""


CLIENTS_OWN = ClientsOwn()


def options(base_url: str, api_key: str | None) -> dict[str, Any]:
    """Return what an httpx client is made with.

    Raises:
        InvalidInput: this is no address of a server.
    """
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidInput(f"{base_url!r} is no address.", hint=f"such as {DEFAULT_URL}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(f"{base_url!r} is no address.", hint=f"such as {DEFAULT_URL}")
    headers = {"User-Agent": f"cat-serve-client/{__version__}"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return {"base_url": url, "headers": headers}


def whole(answer: httpx.Response, pieces: Iterable[bytes]) -> httpx.Response:
    """Return an answer that was read piece by piece, and decoded, as one that has its content."""
    sizes = ("content-encoding", "content-length", "transfer-encoding")  # of what was sent
    headers = [item for item in answer.headers.multi_items() if item[0] not in sizes]
    return httpx.Response(
        answer.status_code,
        headers=headers,
        content=b"".join(pieces),
        request=answer.request,
        extensions={"reason_phrase": answer.extensions.get("reason_phrase", b"")},
    )
