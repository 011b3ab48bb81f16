r"""`cat-serve generate`: images without a server, by an engine in this process; the bytes are the service's.

    cat-serve generate --class sneaker --seeds 0-63 --out grid.png
    cat-serve generate --class "ankle boot" --seeds 3,7-9 --format webp --out boots/
    cat-serve generate --n 50000 --out samples.npz

--seeds makes pictures: one file (.png, .jpeg, .webp; .npy is an array), a grid if there are several, or a folder of
single files. --n makes samples for evaluation, all classes in turn: a .npz with arr_0 (uint8 [N, H, W, 3]) and arr_1
(classes; of a mixture the shares, [N, C]), or a folder of numbered shards of that layout. Samples that were interrupted
go on with the same command.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.cli.engine import add_engine_flags, chosen_model, engine_settings
from cat_serve.cli.writing import bar_of_images, is_folder, require_writable
from cat_serve.commands import run_command
from cat_serve.errors import InvalidInput

if TYPE_CHECKING:
    from cat_serve.manifest import Artefact
    from cat_serve.settings import Settings

SAMPLES_SUFFIX = ".npz"
SHARD, PIECE = (
    1000,
    100,
)  # samples in a file of a folder; in what a single file is put together from


def add_to(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "generate", help="make images without a server", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--class", dest="class_", metavar="CLASS",
        help="index, name, or mixture 7:0.7,9:0.3; samples without it are of all classes")  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", help="of pictures: 5, 0-63 or 0-9,42; one is drawn if absent")
    which.add_argument("--n", type=int, help="number of samples")
    add("--seed", type=int, help="of samples: that of the first one of every class (0)")
    add("--out", required=True, help="FILE.png .jpeg .webp .npy .npz, or a folder")
    add("--truncation-psi", type=float, default=1.0, metavar="PSI",
        help="1 is off, 0 the mean of the class (1)")  # fmt: skip
    add(
        "--stage",
        type=int,
        help="of pictures: 1 .. the model's number of stages, the last one if absent",
    )
    add("--format", choices=("png", "jpeg", "webp", "npy"),
        help="of the files in a folder of pictures (png)")  # fmt: skip
    add("--shard-size", type=int, metavar="N",
        help="samples in one shard (1000), or in what is kept of a single file that was interrupted (100)")  # fmt: skip
    add("--batch", type=int, metavar="N", help="images in one forward pass (16)")
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the images, and print a line of JSON."""
    return run_command(lambda: work(arguments), extra="cpu", resumes=arguments.n is not None)


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make pictures or samples, as the arguments say."""
    from cat_serve.cli.pictures import write_pictures
    from cat_serve.embedded import require_here

    require_effect(arguments)
    if not 0 <= arguments.truncation_psi <= 1:
        raise InvalidInput(f"--truncation-psi is {arguments.truncation_psi}.", hint="0 to 1")
    settings = engine_settings(arguments, max_batch=arguments.batch)
    require_here(settings)
    artefact = chosen_model(settings)
    artefact.manifest.require_psi(arguments.truncation_psi)
    if arguments.n is not None:
        return write_samples(arguments, settings, artefact)
    return write_pictures(arguments, settings, artefact)


def require_effect(arguments: argparse.Namespace) -> None:
    """Refuse flags that would change nothing of what is made.

    Raises:
        InvalidInput: naming the first of them.
    """
    samples = arguments.n is not None
    of_others = ("stage", "format") if samples else ("seed", "shard_size")
    given = [name for name in of_others if getattr(arguments, name) is not None]
    if not given:
        return
    flag = "--" + given[0].replace("_", "-")
    if samples:
        raise InvalidInput(
            f"--n makes samples, and {flag} is for pictures.", hint="--seeds makes pictures"
        )
    raise InvalidInput(
        f"Without --n pictures are made, and {flag} is for samples.",
        hint="--seeds 5 makes the picture of seed 5",
    )


def write_samples(
    arguments: argparse.Namespace, settings: Settings, artefact: Artefact
) -> dict[str, Any]:
    """Make samples for evaluation into one file or a folder of shards."""
    from cat_serve.embedded import classes_of, embedded
    from cat_serve.mixtures import class_of, parse_classes
    from cat_serve.samples import Samples, write_one_file, write_shards

    out = Path(arguments.out)
    folder = is_folder(arguments.out)
    if not (folder or out.suffix == SAMPLES_SUFFIX):
        raise InvalidInput(
            f"--n makes samples, and --out {arguments.out} is for pictures.",
            hint="--out samples.npz or a folder; for pictures --seeds",
        )
    require_writable(out)
    mixture = (
        None if arguments.class_ is None else parse_classes(arguments.class_, classes_of(artefact))
    )
    with embedded(artefact, settings, studio=len(mixture or ()) > 1) as engine:
        determinism, given = engine.backend.determinism, arguments.shard_size
        samples = Samples(
            model=engine.model.label, backend=engine.backend.name, provider=settings.provider,
            precision=engine.backend.precision, n=arguments.n,
            num_classes=artefact.manifest.num_classes,
            class_id=None if mixture is None else class_of(mixture),
            seed=arguments.seed or 0, truncation_psi=arguments.truncation_psi,
            shard_size=(SHARD if folder else PIECE) if given is None else given,
            batch=None if determinism == "bytes" else engine.batch,
        )  # fmt: skip
        write = write_shards if folder else write_one_file
        began_s = time.perf_counter()
        with bar_of_images(samples.n, engine.model.label) as bar:

            def there(images: int) -> None:
                bar.initial += images  # the rate is of what is made now
                bar.update(images)

            made = write(
                out, samples,
                lambda rows, seeds: engine.images(rows, seeds, samples.truncation_psi, bar.update),
                there,
            )  # fmt: skip
        seconds = time.perf_counter() - began_s
    return report(samples.n, made, seconds, samples.model, determinism, settings, out)


def report(
    images: int, made: int, seconds: float, model: str, determinism: str, settings: Settings,
    out: Path, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return what the last line says.

    Args:
        made: how many of the images were made now; the others were there.
    """
    return {
        "images": images, "made": made, "seconds": round(seconds, 3),
        "images_per_second": round(made / seconds, 2) if seconds else 0.0, "model": model,
        "determinism": determinism, "backend": settings.backend, "provider": settings.provider,
        "precision": settings.precision, "out": str(out), **more,
    }  # fmt: skip
