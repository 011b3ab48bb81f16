"""A model in a Triton server as a form: its engine model over gRPC, as any client gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cat_serve.contract import IMAGES, OK, OUTPUT_NAMES, Precision, Z
from cat_serve.errors import ArtefactError, BackendError, BackendUnavailable, InvalidInput
from cat_serve.triton_models.tensors import CHECKPOINT, NUM_CLASSES, PRECISION
from export.forms.base import Form, Identity

if TYPE_CHECKING:
    from cat_serve.contract import Output
    from export.probes import Seeded

SCHEME = "grpc://"
TIMEOUT_S = 120.0
WRITE_IT = "write the server's configuration with: python -m export.triton REPOSITORY"


def open_model(name: str, precision: Precision) -> Form:
    """Open an engine model by grpc://HOST:PORT/MODEL; its configuration says the precision.

    Raises:
        InvalidInput: the address names no model.
        BackendUnavailable: no answer, or no such model.
        ArtefactError: its configuration does not say what it serves.
    """
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    address = urlsplit(name)
    model = address.path.strip("/")
    if not model or "/" in model or address.query:
        raise InvalidInput(f"{name} names no model of the server.", hint=f"{SCHEME}HOST:PORT/MODEL")
    client = InferenceServerClient(address.netloc)
    try:
        server = client.get_server_metadata(client_timeout=TIMEOUT_S)
        config = client.get_model_config(model, client_timeout=TIMEOUT_S).config
    except InferenceServerException as error:
        raise BackendUnavailable(
            f"{address.netloc} does not serve {model}: {error.message()}", hint="make triton"
        ) from error
    identity, served = identity_of(model, config)
    return Form(
        name=name,
        engine=f"Triton {server.version}, {config.backend}",
        identity=identity,
        precision=served,
        # ONNX Runtime on a CPU, which the python engine runs, was measured; see `cat_serve.backends.triton_wire`
        determinism="bytes" if config.backend == "python" else "latent",
        max_batch=config.max_batch_size,
        run=lambda rows: infer(client, model, rows, identity.z_shape),
    )


def identity_of(model: str, config: Any) -> tuple[Identity, str]:
    """Return which model a configuration is of, and its precision.

    Raises:
        ArtefactError: it was not written by `export.triton`, or is no engine model's.
    """
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in (*config.input, *config.output)}
    try:
        height, width, _ = shapes[IMAGES]
        identity = Identity(
            checkpoint_sha256=parameters[CHECKPOINT],
            num_classes=int(parameters[NUM_CLASSES]),
            class_names=None,
            z_shape=shapes[Z],
            image_size=(height, width),
        )
        return identity, parameters[PRECISION]
    except (KeyError, ValueError) as error:
        raise ArtefactError(
            f"The configuration of {model} does not say what it serves: {error!r}.", hint=WRITE_IT
        ) from error


def infer(client: Any, model: str, rows: Seeded, z_shape: tuple[int, ...]) -> Output:
    """Make the images of some rows in one request.

    Raises:
        BackendError: the server refused or failed.
    """
    from tritonclient.grpc import InferenceServerException, InferInput
    from tritonclient.utils import np_to_triton_dtype

    from cat_serve.contract import Output

    inputs = []
    for name, array in as_on_the_wire(rows.batch(z_shape).feeds()).items():
        tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    try:
        result = client.infer(model, inputs, client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        raise BackendError(f"Triton failed on {model}: {error.message()}") from error
    images, ok = (result.as_numpy(name) for name in OUTPUT_NAMES)
    if images is None or ok is None or len(images) != len(rows) or ok.size != len(rows):
        raise BackendError(f"Triton answered {len(rows)} rows of {model} without {IMAGES} or {OK}.")
    return Output(images, ok.reshape(-1))


def as_on_the_wire(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors as Triton's configurations have them: one number of a row is [B, 1]."""
    return {k: array[:, None] if array.ndim == 1 else array for k, array in feeds.items()}
