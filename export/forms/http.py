"""A model behind HTTP as a form to compare: its images by seed, through /generate as any client gets them."""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np

from cat_serve.errors import BackendError, BackendUnavailable, InvalidInput, UnknownModel
from export.forms.base import Form, Identity
from export.probes import RUN_BATCH, rows

if TYPE_CHECKING:
    from cat_serve.contract import Output, Precision
    from export.probes import Seeded

TIMEOUT_S = 120.0
BAD_OUTPUT = "bad_output"
START_IT = "start it with: cat-serve serve"


class Refused(BackendError):
    """The server answered with a problem; `problem` among the details is its code."""


@dataclass(frozen=True)
class Server:
    """Where a server listens; proxies of the environment are not used."""

    base: str

    def json(self, path: str, **query: str) -> dict[str, Any]:
        """GET a JSON object."""
        content, _ = self.ask("GET", path, query)
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise BackendError(f"{self.base}{path} is no JSON object.", hint=START_IT)
        return value

    def ask(self, method: str, path: str, query: Mapping[str, Any]) -> tuple[bytes, Any]:
        """Send one request without a body; return content and headers of the answer.

        Raises:
            Refused: the answer's status is not 200.
            BackendUnavailable: there is no answer.
        """
        request = urllib.request.Request(f"{self.base}{path}?{urlencode(query)}", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(f"{self.base}{path}", error.code, error.read()) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise BackendUnavailable(
                f"{self.base} does not answer: {reason}.", hint=START_IT
            ) from error


def _refusal(address: str, status: int, content: bytes) -> Refused:
    try:
        problem = json.loads(content)
        code, detail, hint = problem["code"], problem["detail"], problem.get("hint")
    except (ValueError, KeyError, TypeError):
        code, detail, hint = None, "it gives no reason that cat-serve would", START_IT
    return Refused(f"{address} answered {status}: {detail}", hint=hint, problem=code)


@dataclass(frozen=True)
class RemoteModel:
    """One model of a server.

    Attributes:
        label: name@version, which every answer must carry.
        max_images: most images of one request.
        at_once: most requests at the same time.
        neutral_psi: the only truncation that the model takes; None: it takes any.
    """

    server: Server
    name: str
    label: str
    image_size: tuple[int, int]
    max_images: int
    at_once: int
    neutral_psi: float | None = None

    def run(self, batch: Seeded) -> Output:
        """Make the images of all rows, in requests sent at once that the server may batch as it likes.

        Raises:
            BackendError: an answer that is not the model's images.
        """
        from export.probes import joined

        pieces = [rows(batch, run) for run in consecutive(batch, self.max_images)]
        with ThreadPoolExecutor(min(len(pieces), self.at_once)) as pool:
            return joined(list(pool.map(self.request, pieces)))

    def psi_of(self, piece: Seeded) -> float:
        """Return the truncation to ask for; a server refuses one that means nothing, and images do not depend on it."""
        return float(piece.truncation_psi[0]) if self.neutral_psi is None else self.neutral_psi

    def request(self, piece: Seeded) -> Output:
        """Make the images of rows that one request can name; rows the server will not show are not ok."""
        from cat_serve.contract import Output
        from export.probes import in_batches

        query = {
            "model": self.name,
            "class": int(piece.class_id[0]),
            "seed": int(piece.seed[0]),
            "truncation_psi": self.psi_of(piece),
            "n": len(piece),
            "format": "npy",
            "response": "image",
        }
        try:
            content, headers = self.server.ask("POST", "/generate", query)
        except Refused as refused:
            if refused.details["problem"] != BAD_OUTPUT:
                raise
            if len(piece) > 1:
                return in_batches(self.request, piece, 1)
            return Output(np.zeros((1, *self.image_size, 3), np.uint8), np.zeros(1, dtype=bool))
        if headers["X-Model"] != self.label:
            raise BackendError(
                f"{self.server.base} now serves {headers['X-Model']}; it served {self.label} before.",
                hint="compare again",
            )
        return Output(self._images(content, len(piece)), np.ones(len(piece), dtype=bool))

    def _images(self, content: bytes, count: int) -> np.ndarray:
        """Return uint8 [count, H, W, 3]; one image comes without the first axis."""
        wanted = (count, *self.image_size, 3)
        try:
            images = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BackendError(f"{self.server.base} answered no .npy file: {error}.") from error
        if images.dtype != np.uint8 or images.shape != wanted[count == 1 :]:
            raise BackendError(
                f"{self.server.base} answered {images.dtype} {list(images.shape)}, not uint8 {list(wanted)}."
            )
        return images.reshape(wanted)


def consecutive(batch: Seeded, longest: int) -> list[slice]:
    """Cut rows into requests: one class and psi, seeds that follow each other, `longest` at most."""
    seed, class_id, psi = batch.seed, batch.class_id, batch.truncation_psi
    slices, start = [], 0
    for row in range(1, len(batch) + 1):
        if (
            row == len(batch)
            or row - start == longest
            or seed[row] != seed[row - 1] + 1
            or class_id[row] != class_id[start]
            or psi[row] != psi[start]
        ):
            slices.append(slice(start, row))
            start = row
    return slices


def open_server(name: str, precision: Precision) -> Form:
    """Open the model that `?model=` names, or the server's default; the server says the precision.

    Raises:
        InvalidInput: the address has another parameter.
        BackendUnavailable: no answer.
        BackendError: it is not ready, or no cat-serve.
        UnknownModel: it has no such model.
    """
    address = urlsplit(name)
    query = parse_qs(address.query, keep_blank_values=True)
    if query.keys() - {"model"} or address.fragment:
        raise InvalidInput(f"{name} has more than ?model=NAME behind the address of the server.")
    server = Server(f"{address.scheme}://{address.netloc}{address.path.rstrip('/')}")
    server.json("/readyz")
    try:
        card = _card(server, query.get("model", [None])[-1])
        return _form(name, server, card)
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{server.base} describes its models as no cat-serve of this version does ({error!r}).",
            hint=START_IT,
        ) from error


def _card(server: Server, wanted: str | None) -> dict[str, Any]:
    cards = server.json("/models").get("models", [])
    for card in cards:
        if card["name"] == wanted or (wanted is None and card["default"]):
            return card
    raise UnknownModel(
        f"{server.base} has no model {wanted!r}.",
        hint=f"models there: {', '.join(card['name'] for card in cards)}",
    )


def _form(name: str, server: Server, card: dict[str, Any]) -> Form:
    (named,) = server.json("/classes", model=card["name"])["models"]
    height, width = card["image_size"]
    limits = card["limits"]
    at_once = min(limits["max_batch"], limits["max_queued_images"])
    model = RemoteModel(
        server=server,
        name=card["name"],
        label=f"{card['name']}@{card['version']}",
        image_size=(height, width),
        neutral_psi=float(card["truncation_psi"]["neutral"])
        if card["truncation_psi"]["meaning"] == "none"
        else None,
        max_images=min(limits["max_images_per_request"], RUN_BATCH),
        at_once=at_once,
    )
    return Form(
        name=name,
        engine=f"cat-serve, {model.label} on {card['backend']}",
        identity=Identity(
            checkpoint_sha256=card["source"].get("checkpoint_sha256"),
            num_classes=card["num_classes"],
            class_names=tuple(entry["name"] for entry in named["classes"]),
            z_shape=tuple(card["z_shape"]),
            image_size=(height, width),
        ),
        precision=card["precision"],
        determinism=card["determinism"],
        max_batch=at_once,
        run=model.run,
    )
