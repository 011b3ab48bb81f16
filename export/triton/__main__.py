"""Make a Triton repository of a model repository: a config.pbtxt for every model, and the friendly model `cat`.

    python -m export.triton model_repository
    python -m export.triton models --engine onnxruntime_onnx --precision fp16 --gpus 0 1
    python -m export.triton models --engine tensorrt_plan --precision fp16 --plan 8.9=l4.plan 9.0=h100.plan
    python -m export.triton model_repository --check

The python engine runs the exported graphs with ONNX Runtime on the CPU; the two others are Triton's own backends
for GPUs. Tensors and their meaning are the same in all three. What is written does not change a model's version.
`python -m export.onnx` replaces a version folder whole, so run this again after it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.triton.files import Layout
    from export.triton.options import Device, QueuePolicy, Versions


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.triton", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("repository", type=Path, help="folder <model>/<version>/, as export.onnx writes it")
    add(
        "--model",
        nargs="+",
        metavar="NAME",
        help="write the configuration of these only (default: all)",
    )
    add("--engine", choices=("python", "onnxruntime_onnx", "tensorrt_plan"), default="python",
        help="(default: %(default)s)")  # fmt: skip
    add("--precision", choices=("fp32", "fp16"), default="fp32",
        help="which graph, or which graph the plans were built from (default: %(default)s)")  # fmt: skip
    add("--plan", nargs="+", default=[], metavar="CC=FILE", help="TensorRT plans in the version folder, one for "
        "each compute capability, such as 8.9=l4.plan (default: model.plan for any GPU)")  # fmt: skip
    add("--versions", nargs="+", default=["latest"], metavar="latest[:N]|all|NUMBER",
        help="which version folders are served (default: %(default)s)")  # fmt: skip
    _add_batching(parser.add_argument_group("batches and queue"))
    _add_placement(parser.add_argument_group("where it runs"))
    friendly = parser.add_argument_group("the model cat")
    friendly.add_argument(
        "--default-model",
        metavar="NAME",
        help="for requests without one (default: the only model, or fashion-32)",
    )
    friendly.add_argument("--cat-instances", type=_count, default=2, help="(default: %(default)s)")
    friendly.add_argument("--without-cat", action="store_true",
                          help="no model cat: nothing then needs the python backend")  # fmt: skip
    add(
        "--check",
        action="store_true",
        help="write nothing; exit 1 if a file is not as these options say",
    )
    return parser


def _add_batching(group: Any) -> None:
    add = group.add_argument
    add(
        "--max-batch",
        type=_count,
        metavar="N",
        help="rows of one forward pass (default: the model's own limit)",
    )
    add("--preferred-batch", type=_count, nargs="+", default=[], metavar="N",
        help="sizes at which a batch starts without waiting (default: none)")  # fmt: skip
    add("--queue-delay-us", type=_number, default=0, metavar="US",
        help="microseconds that a batch waits for more rows (default: %(default)s)")  # fmt: skip
    add("--max-queue-size", type=_number, default=256, metavar="N",
        help="requests that may wait; one more is refused; 0: no limit (default: %(default)s)")  # fmt: skip
    add("--queue-timeout-ms", type=_number, default=30_000, metavar="MS",
        help="longest wait of a request; 0: no limit (default: %(default)s)")  # fmt: skip
    add("--no-timeout-override", action="store_true", help="requests may not ask for a shorter one")
    add("--warm-up", type=_number, nargs="+", metavar="N",
        help="batch sizes to run at load; 0: none (default: powers of two up to --max-batch, on a CPU up to 8)")  # fmt: skip


def _add_placement(group: Any) -> None:
    add = group.add_argument
    add("--device", choices=("cpu", "gpu"), help="(default: cpu for python, else gpu)")
    add("--gpus", type=_number, nargs="+", default=[], metavar="ID", help="(default: every GPU)")
    add("--instances", type=_count, default=1, metavar="N",
        help="of each engine model, on every device (default: %(default)s)")  # fmt: skip
    add("--threads", type=_number, default=0, metavar="N",
        help="of one forward pass on a CPU; 0: ONNX Runtime decides (default: %(default)s)")  # fmt: skip


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="triton")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write, or with --check compare; return what to report."""
    from cat_serve.errors import InvalidInput
    from export.triton.files import differences, planned_files, write

    repository = arguments.repository
    if not repository.is_dir():
        raise InvalidInput(
            f"There is no model repository {repository}.", hint="python -m export.onnx --help"
        )
    files = planned_files(repository, layout_of(arguments))
    changed = differences(files) if arguments.check else write(files)
    for path in changed:
        said = "differs" if arguments.check else "written" if path.exists() else "removed"
        print(f"{said}  {path}", file=sys.stderr)
    report = {"repository": str(repository), "engine": arguments.engine, "precision": arguments.precision,
              "files": sum(text is not None for text in files.values()), "changed": len(changed)}  # fmt: skip
    return report | {"passed": not changed} if arguments.check else report


def layout_of(arguments: argparse.Namespace) -> Layout:
    """Return what the arguments ask for.

    Raises:
        InvalidInput: plans without TensorRT, or values that cannot be read.
    """
    from cat_serve.errors import InvalidInput
    from export.triton.files import Layout
    from export.triton.options import Batching, EngineOptions, Placement

    if arguments.plan and arguments.engine != "tensorrt_plan":
        raise InvalidInput("--plan is for TensorRT.", hint="--engine tensorrt_plan")
    device: Device = arguments.device or ("cpu" if arguments.engine == "python" else "gpu")
    if arguments.gpus and device == "cpu":
        raise InvalidInput(
            "--gpus needs an engine on GPUs.", hint="--engine tensorrt_plan or onnxruntime_onnx"
        )
    warm_up = arguments.warm_up
    engine = EngineOptions(
        engine=arguments.engine,
        precision=arguments.precision,
        batching=Batching(
            max_batch=arguments.max_batch,
            preferred=tuple(arguments.preferred_batch),
            delay_us=arguments.queue_delay_us,
            queue=_queue(arguments),
        ),
        placement=Placement(device, arguments.instances, tuple(arguments.gpus)),
        versions=_versions(arguments.versions),
        threads=arguments.threads,
        plans=_plans(arguments.plan),
        warm_up=None if warm_up is None else () if warm_up == [0] else tuple(warm_up),
    )
    return Layout(
        engine=engine,
        models=tuple(arguments.model) if arguments.model else None,
        friendly=not arguments.without_cat,
        friendly_instances=arguments.cat_instances,
        default_model=arguments.default_model,
    )


def _queue(arguments: argparse.Namespace) -> QueuePolicy:
    from export.triton.options import QueuePolicy

    return QueuePolicy(
        arguments.max_queue_size, arguments.queue_timeout_ms, not arguments.no_timeout_override
    )


def _versions(words: list[str]) -> Versions:
    from cat_serve.errors import InvalidInput
    from export.triton.options import Versions

    word, _, count = words[0].partition(":")
    if words == ["all"]:
        return Versions(latest=None)
    if len(words) == 1 and word == "latest" and (count or "1").isdecimal() and count != "0":
        return Versions(latest=int(count or 1))
    if all(each.isdecimal() and int(each) > 0 for each in words):
        return Versions(latest=None, numbers=tuple(sorted({int(each) for each in words})))
    raise InvalidInput(
        f"--versions {' '.join(words)} cannot be read.",
        hint="latest, latest:2, all, or numbers such as 1 3",
    )


def _plans(words: list[str]) -> Mapping[str, str]:
    from cat_serve.errors import InvalidInput

    plans = {}
    for word in words:
        capability, _, name = word.partition("=")
        major, _, minor = capability.partition(".")
        if not (major.isdecimal() and minor.isdecimal() and name) or "/" in name:
            raise InvalidInput(
                f"--plan {word} cannot be read.",
                hint="compute capability and a file's name: 8.9=l4.plan",
            )
        plans[capability] = name
    return plans


if __name__ == "__main__":
    sys.exit(main())
