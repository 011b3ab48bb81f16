"""`cat-serve bench`: how quickly images are made, by an engine in this process or by a server.

    cat-serve bench --batch 1 4 16 --concurrency 1 2
    cat-serve bench --url http://127.0.0.1:8000 --concurrency 1 8 --seconds 10

Without --url only the engine is measured: no queue, no encoder, no HTTP. With it, all of a request is.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cat_serve.cli.engine import add_engine_flags, chosen_model, engine_settings
from cat_serve.cli.remote import add_server_flags
from cat_serve.commands import explain_failure, run_command
from cat_serve.errors import CatServeError, InvalidInput, Overloaded

if TYPE_CHECKING:
    from cat_serve.bench import Bounds, Do, Measured

Subject = tuple[dict[str, Any], Callable[[int, int], "Do"]]


def add_to(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench", help="measure latency and images/s, of the engine or of a server",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[1, 4, 16], metavar="N",
        help="images in one forward pass, or in one request to a server (1 4 16)")  # fmt: skip
    add("--concurrency", type=int, nargs="+", default=[1, 2], metavar="N",
        help="passes, or requests, at the same time (1 2)")  # fmt: skip
    add(
        "--class",
        dest="class_",
        default="0",
        metavar="CLASS",
        help="class index or name, or a mixture 7:0.7,9:0.3 (0)",
    )
    add("--seconds", type=float, default=5.0, help="of every case at most (5)")
    add("--requests", type=int, help="of every case at most")
    add("--warm-up", type=int, default=3, metavar="N",
        help="requests at the begin of every case, for each concurrent one, that do not count (3)")  # fmt: skip
    server = parser.add_argument_group("server")
    add_server_flags(server, "measure the server at this address")
    server.add_argument("--remote", action="store_true",
                        help="the address may be of another machine, and may have that load")  # fmt: skip
    server.add_argument("--format", default="png", choices=("png", "jpeg", "webp", "npy"),
                        help="of the images (png)")  # fmt: skip
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table and a line of JSON."""
    extra = "client" if arguments.url else "cpu"
    return run_command(lambda: work(arguments), extra=extra, resumes=False)


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every case; interrupted, or if one fails, report those that were measured, as a check that failed.

    Raises: what the first case raises.
    """
    from cat_serve.bench import Bounds, machine, table

    bounds = Bounds(arguments.seconds, arguments.requests, arguments.warm_up)
    _require_sense(arguments)
    cases: list[Measured] = []
    ended: str | None = None
    opened = _server if arguments.url else _engine
    with opened(arguments) as (facts, do):
        try:
            for case in _measured(arguments, bounds, do):
                cases.append(case)
        except KeyboardInterrupt:
            ended = "interrupted"
        except CatServeError as error:
            if not cases:
                raise
            explain_failure(error)
            ended = error.message
    where = "machine_of_the_client" if arguments.url else "machine"
    report = {**facts, where: machine(), "warm_up": bounds.warm_up}
    print(*(f"{name}: {_shown(value)}" for name, value in report.items()), sep="\n", end="\n\n")
    print(table(cases), end="\n\n")
    rows = [case.row() for case in cases]
    return {**report, "cases": rows, "ended": ended, "passed": ended is None}


def _measured(
    arguments: argparse.Namespace, bounds: Bounds, do: Callable[[int, int], Do]
) -> Iterator[Measured]:
    from cat_serve.bench import measure

    for concurrency in arguments.concurrency:
        for batch in arguments.batch:
            print(f"batch {batch}, concurrency {concurrency} ...", file=sys.stderr, flush=True)
            yield measure(do(batch, concurrency), batch, concurrency, bounds)


@contextlib.contextmanager
def _engine(arguments: argparse.Namespace) -> Iterator[Subject]:
    """Open the engine; one request is one forward pass."""
    from cat_serve.embedded import classes_of, embedded
    from cat_serve.mixtures import parse_classes

    settings = engine_settings(arguments)
    artefact = chosen_model(settings)
    limit = artefact.manifest.max_batch
    if (largest := max(arguments.batch)) > limit:
        raise InvalidInput(f"--batch {largest} is more than {limit}, the model's largest.")
    mixture = parse_classes(arguments.class_, classes_of(artefact))
    with embedded(artefact, settings, studio=len(mixture) > 1) as engine:
        height, width = artefact.manifest.image_size
        facts = {
            "subject": "studio" if engine.studio else "engine", "model": engine.model.label, "image_size_px": [height, width],
            "backend": engine.backend.name, "provider": settings.provider,
            "precision": engine.backend.precision, "threads": settings.threads or "engine's choice",
        }  # fmt: skip

        def do(batch: int, concurrency: int) -> Do:
            passes = [
                engine.inputs([mixture] * batch, range(worker, worker + batch), 1.0)
                for worker in range(concurrency)
            ]

            def once(worker: int) -> dict[str, float]:
                engine.run(passes[worker])
                return {}

            return once

        yield facts, do


@contextlib.contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[Subject]:
    """Connect; one request is one POST /generate, answered with files, and is not repeated when it is refused."""
    from cat_serve.cli.remote import client_of
    from cat_serve.client import Retries

    with client_of(arguments, retries=Retries(attempts=1)) as client:
        if not arguments.remote and not is_loopback(arguments.url):
            raise InvalidInput(
                f"{arguments.url} is not this machine.",
                hint="--remote, if whoever runs it agrees to the load",
            )
        cards = client.models()
        wanted = getattr(arguments, "model", None)
        card = next((c for c in cards if (c.name == wanted if wanted else c.default)), None)
        if card is None:
            names = ", ".join(each.name for each in cards)
            raise InvalidInput(f"The server has no model {wanted!r}.", hint=f"models: {names}")
        facts = {
            "subject": "server", "url": arguments.url, "model": f"{card.name}@{card.version}",
            "image_size_px": list(card.image_size), "backend": card.backend,
            "precision": card.precision, "format": arguments.format,
        }  # fmt: skip

        seeds = itertools.count()

        def do(batch: int, concurrency: int) -> Do:
            def once(worker: int) -> dict[str, float] | None:
                try:
                    images = client.generate(
                        arguments.class_, seed=next(seeds), n=batch, format=arguments.format,
                        model=card.name,
                    )  # fmt: skip
                except Overloaded:
                    return None
                spent = images.timings
                return {
                    "queue": spent.queue_ms, "generate": spent.generate_ms,
                    "encode": spent.encode_ms,
                }  # fmt: skip

            return once

        yield facts, do


def is_loopback(url: str) -> bool:
    """Say whether an address is this machine by its name alone, so that no look-up can tell otherwise."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_sense(arguments: argparse.Namespace) -> None:
    counts: Sequence[int] = [*arguments.batch, *arguments.concurrency, arguments.requests or 1]
    if min(counts) < 1 or arguments.warm_up < 0 or not arguments.seconds > 0:
        raise InvalidInput(
            "--batch, --concurrency and --requests are 1 or more, --warm-up 0 or more, --seconds more than 0."
        )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
