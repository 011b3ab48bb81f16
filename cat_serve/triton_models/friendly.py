"""The model `cat`: images of a class by name or index, for clients that know nothing of latents.

It computes nothing itself. Each request becomes calls of an engine model, all of them under way at once, so that
the engine's dynamic batcher merges what it can. See `cat_serve.triton_models.tensors` for inputs and outputs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cat_serve.contract import CLASS_ID, IMAGES, OK, OUTPUT_NAMES, TRUNCATION_PSI, Batch, Output, Z
from cat_serve.errors import BackendError, BackendUnavailable, BadOutput, CatServeError
from cat_serve.images import encode
from cat_serve.passes import concatenated
from cat_serve.showable import require_showable
from cat_serve.triton_models import stub
from cat_serve.triton_models.asked import Asked, parse
from cat_serve.triton_models.catalogue import read_catalogue
from cat_serve.triton_models.tensors import (
    DEFAULT_MODEL,
    ENCODED,
    FRIENDLY_INPUTS,
    IMAGE,
    MODELS,
    SEED,
)
from cat_serve.web.answers import facts

# The server hands on why an engine refused, but as INTERNAL; these words say that it may be asked again.
TRY_AGAIN = ("maximum queue size", "timeout expired", "is not ready")


class TritonPythonModel:
    """One instance of the model; the server's stub creates it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read which models there are, and their classes.

        Raises:
            ArtefactError: what the configuration says does not go with the folder.
        """
        self._pb = stub.backend_module()
        self._catalogue = read_catalogue(
            Path(args["model_repository"]) / args["model_version"],
            json.loads(stub.parameter(args, MODELS)),
            stub.parameter(args, DEFAULT_MODEL),
        )

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer several requests at once; one that is bad fails none of the others."""
        return list(await asyncio.gather(*map(self._answer, requests)))

    async def _answer(self, request: Any) -> Any:
        if request.is_cancelled():
            return stub.cancelled(self._pb)
        try:
            names = [spec.name for spec in FRIENDLY_INPUTS]
            columns = {name: stub.column(self._pb, request, name) for name in names}
            asked = parse(columns, self._catalogue)
            output = await self._images(asked, request.timeout())
            require_all_showable(output, asked)
            return self._response(asked, output.images, request.requested_output_names())
        except CatServeError as error:
            return stub.refusal(self._pb, error)

    async def _images(self, asked: Asked, timeout_us: int) -> Output:
        calls = [self._call(asked, batch, timeout_us).async_exec() for batch in asked.batches()]
        return concatenated([self._output(response) for response in await asyncio.gather(*calls)])

    def _call(self, asked: Asked, batch: Batch, timeout_us: int) -> Any:
        """Return the call of one engine; the version is named, so that metadata and pixels belong together."""
        tensor = self._pb.Tensor
        return self._pb.InferenceRequest(
            model_name=asked.model.name,
            model_version=self._catalogue.versions[asked.model.name],
            requested_output_names=list(OUTPUT_NAMES),
            inputs=[
                tensor(Z, batch.z),
                tensor(CLASS_ID, batch.class_id[:, None]),
                tensor(TRUNCATION_PSI, batch.truncation_psi[:, None]),
            ],
            timeout=timeout_us,
            # the engine may answer from a GPU, and what follows needs the bytes here
            preferred_memory=self._pb.PreferredMemory(self._pb.TRITONSERVER_MEMORY_CPU),
        )

    def _output(self, response: Any) -> Output:
        if response.has_error():
            raise engine_error(response.error().message())
        images, ok = (
            self._pb.get_output_tensor_by_name(response, name).as_numpy() for name in (IMAGES, OK)
        )
        return Output(images, ok.reshape(-1))

    def _response(self, asked: Asked, images: np.ndarray, wanted: set[str]) -> Any:
        tensor = self._pb.Tensor
        tensors = [
            tensor(SEED, np.array(asked.seeds, dtype=np.int64)),
            tensor(CLASS_ID, np.array([image.class_id for image in asked.images], dtype=np.int64)),
        ]
        if IMAGE in wanted:
            tensors.append(tensor(IMAGE, images))
        if ENCODED in wanted:
            tensors.append(tensor(ENCODED, np.array(encoded(asked, images), dtype=np.object_)))
        return self._pb.InferenceResponse([each for each in tensors if each.name() in wanted])


def engine_error(said: str) -> BackendError:
    """Return the error for what the server said of an engine's refusal."""
    if any(words in said.lower() for words in TRY_AGAIN):
        return BackendUnavailable(said, hint="the engine is full or not loaded: try again later")
    return BackendError(said)


def encoded(asked: Asked, images: np.ndarray) -> list[bytes]:
    """Return the file of every row; it says how it was made in the same words as one got over HTTP."""
    return [
        encode(pixels, image_format, facts(image))
        for pixels, image_format, image in zip(images, asked.formats, asked.images, strict=True)
    ]


def require_all_showable(output: Output, asked: Asked) -> None:
    """Refuse images that the graph flagged, or that have one colour only.

    Raises:
        BadOutput: naming the seeds.
    """
    bad: list[BadOutput] = []
    for row, image in enumerate(asked.images):
        try:
            require_showable(Output(output.images[row : row + 1], output.ok[row : row + 1]), image)
        except BadOutput as error:
            bad.append(error)
    if bad:
        said = " ".join(error.message for error in bad)
        raise BadOutput(said, hint=bad[0].hint)
