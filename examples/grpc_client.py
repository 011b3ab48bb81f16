"""Ask the Triton model `cat` for images and save them: a client to copy. It needs numpy and tritonclient[grpc].

python examples/grpc_client.py --class "ankle boot" --seed 1 --images 4 --psi 0.7 --out images
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def column(name: str, values: list, dtype: type) -> grpc.InferInput:
    """Return one input of the request: a value for each image, [images, 1]."""
    array = np.array(values, dtype=dtype).reshape(-1, 1)
    tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def ask(
    client: grpc.InferenceServerClient,
    classes: list[str],
    seeds: list[int] | None = None,
    psi: float = 1.0,
    image_format: str = "png",
    model: str | None = None,
    timeout_s: float = 60.0,
) -> list[tuple[int, int, bytes]]:
    """Return class index, seed and file of one image for each of `classes`; without seeds they are drawn.

    The output `image`, which is not asked for here, has the pixels: uint8 [images, height, width, 3].
    """
    inputs = [
        column("class", classes, np.object_),
        column("truncation_psi", [psi] * len(classes), np.float32),
        column("format", [image_format] * len(classes), np.object_),
    ]
    if seeds is not None:
        inputs.append(column("seed", seeds, np.int64))
    if model is not None:
        inputs.append(column("model", [model] * len(classes), np.object_))
    outputs = [grpc.InferRequestedOutput(name) for name in ("class_id", "seed", "encoded")]
    answer = client.infer("cat", inputs, outputs=outputs, client_timeout=timeout_s)
    columns = (answer.as_numpy(name).reshape(-1) for name in ("class_id", "seed", "encoded"))
    return [(int(class_id), int(seed), data) for class_id, seed, data in zip(*columns, strict=True)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--url", default="127.0.0.1:8001", help="Triton's gRPC address (default: %(default)s)")
    add(
        "--class",
        dest="classes",
        nargs="+",
        required=True,
        metavar="CLASS",
        help="names or indices",
    )
    add("--seed", type=int, help="of the first image, the next has one more; drawn if not given")
    add(
        "--images", type=int, default=1, help="of each class, in one request (default: %(default)s)"
    )
    add("--psi", type=float, default=1.0, help="truncation_psi: 1 is off, 0 the mean of the class")
    add("--format", choices=("png", "jpeg", "webp"), default="png")
    add("--model", help="(default: the server's default model)")
    add("--out", type=Path, default=Path("images"), help="folder (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    classes = [name for name in arguments.classes for _ in range(arguments.images)]
    first = arguments.seed
    seeds = (
        None
        if first is None
        else [first + i for i in range(arguments.images)] * len(arguments.classes)
    )
    try:
        with grpc.InferenceServerClient(arguments.url) as client:
            made = ask(client, classes, seeds, arguments.psi, arguments.format, arguments.model)
    except (
        InferenceServerException
    ) as error:  # what was wrong and, on the next line, what would be right
        print(f"error: {error.message()}", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    for class_id, seed, data in made:
        path = arguments.out / f"class-{class_id}_seed-{seed}.{arguments.format}"
        path.write_bytes(data)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
