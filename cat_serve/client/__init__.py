"""A client of the server, in two forms: `Client` blocks, `AsyncClient` awaits. Needs `pip install 'cat-serve[client]'`.

    with Client("http://127.0.0.1:8000") as client:
        images = client.generate("ankle boot", seed=3, n=4)
        images[0].save("boot.png")

Errors are those of `cat_serve.errors`, with the server's `code`, `hint` and `details`. An image is a pure function of its
parameters, so a call that found no answer is made again; if it has no seed, one is drawn here before the first attempt.
"""

from __future__ import annotations

try:
    import httpx  # noqa: F401
except ImportError as error:
    raise ImportError(
        "cat_serve.client needs httpx: pip install 'cat-serve[client]'", name="httpx"
    ) from error

from cat_serve.client.asynchronous import AsyncClient
from cat_serve.client.attempts import Retries
from cat_serve.client.results import Animation, Image, Images, ModelCard, ModelClasses, Timings
from cat_serve.client.synchronous import Client

__all__ = [
    "Animation", "AsyncClient", "Client", "Image", "Images", "ModelCard", "ModelClasses", "Retries", "Timings",
]  # fmt: skip
