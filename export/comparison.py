"""Two forms of one model on fixed seeds: their images against each other, and rows of each against its own batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cat_serve.errors import MissingDependency
from export.forms.base import Form, require_same_model
from export.parity import BUDGETS, batch_report, coarser, compare, failed, rows_budget
from export.probes import (
    MAX_CLASSES,
    RUN_BATCH,
    Seeded,
    counting,
    in_batches,
    invariance_sizes,
    joined,
    many_images,
    rows_alone,
    seeded_probe,
)

if TYPE_CHECKING:
    from cat_serve.contract import Output

FULL_PACKAGES = "pip install 'cat-serve[train,teacher]'"


@dataclass(frozen=True)
class VerifyOptions:
    """How much is compared, and what it is held to.

    Attributes:
        classes: each costs three images in either form.
        max_batch: no batch is larger; None leaves it to the forms.
        full_images: images at psi 1 beyond that, and their Frechet distance; 0: neither.
        hold_to: a row of the budgets; None: the coarser of the two forms' precisions.
    """

    classes: int = MAX_CLASSES
    max_batch: int | None = None
    full_images: int = 0
    hold_to: str | None = None


def verify(a: Form, b: Form, options: VerifyOptions) -> dict[str, Any]:
    """Compare two forms; return the report, with `passed` and what `failures` there were.

    Raises:
        InvalidInput: they are not of one model; nothing was run.
        MissingDependency: a full comparison needs packages that are not here; nothing was run.
    """
    from tqdm import tqdm

    require_same_model(a, b)
    if options.full_images:
        require_packages()
    limits = [n for n in (a.max_batch, b.max_batch, options.max_batch) if n is not None]
    tuned = [form.opt_batch for form in (a, b) if form.opt_batch is not None]
    sizes = invariance_sizes(min(limits, default=RUN_BATCH), tuned)
    batch, probe = chosen_rows(a, options)
    with tqdm(total=2 * rows_to_run(batch, probe, sizes), unit="img") as progress:
        output_a, report_a = run_form(a, batch, probe, sizes, progress)
        output_b, report_b = run_form(b, batch, probe, sizes, progress)
    held_to = options.hold_to or coarser(a.precision, b.precision)
    difference = compare(output_a, output_b)
    report: dict[str, Any] = {
        "held_to": held_to,
        "budget": asdict(BUDGETS[held_to]),
        "forms": [report_a, report_b],
        "difference": difference.to_dict(),
    }
    if options.full_images:
        report["fd_effnetlite0"] = set_distance(output_a, output_b, options.full_images)
    failures = failed(difference, held_to, report["forms"])
    return {"passed": not failures, "failures": failures} | report


def run_form(
    form: Form, batch: Seeded, probe: Seeded, sizes: tuple[int, ...], progress: Any
) -> tuple[Output, dict[str, Any]]:
    """Return a form's images of all rows, and what is said of the form, its batches among it.

    Args:
        sizes: of the batches that `probe` is run in; empty if the form takes one row at a time.
        progress: a tqdm bar that counts images.
    """
    progress.set_description(form.engine)
    engine = counting(form.run, progress.update)
    output = in_batches(engine, batch, min(RUN_BATCH, max(sizes, default=1)))
    return output, form_report(form, output) | {"batches": batch_report(engine, probe, sizes)}


def chosen_rows(form: Form, options: VerifyOptions) -> tuple[Seeded, Seeded]:
    """Return all rows that are compared, and those of them that batches are made of."""
    classes = form.identity.num_classes
    probe = seeded_probe(classes, options.classes)
    if not options.full_images:
        return probe, probe
    return joined([probe, many_images(classes, options.full_images)]), probe


def rows_to_run(batch: Seeded, probe: Seeded, sizes: tuple[int, ...]) -> int:
    """Return how many images one form is asked for."""
    return len(batch) + (rows_alone(probe, sizes) + 2 * sum(sizes) if sizes else 0)


def form_report(form: Form, output: Output) -> dict[str, Any]:
    """Return what a form is, and how many of its images were ok."""
    return {
        "name": form.name,
        "engine": form.engine,
        "precision": form.precision,
        "determinism": form.determinism,
        "checkpoint_sha256": form.identity.checkpoint_sha256,
        "images": len(output.ok),
        "ok": int(output.ok.sum()),
        "rows_budget_levels": rows_budget(form.precision, form.determinism),
    }


def require_packages() -> None:
    """Refuse a full comparison that would fail only after its images were made.

    Raises:
        MissingDependency: names the package.
    """

    try:
        import torchmetrics  # noqa: F401

        from cat_serve.quality.features import load_efficientnet
    except ImportError as error:
        raise MissingDependency(f"--budget full needs {error.name}.", hint=FULL_PACKAGES) from error
    load_efficientnet()


def set_distance(a: Output, b: Output, images: int) -> float:
    """Return FD-EffNetLite0 between the last `images` images of both, made from equal seeds."""
    from cat_serve.quality.distances import frechet_distance
    from cat_serve.quality.features import extract

    return frechet_distance(
        extract(b.images[-images:], "features of the second"),
        extract(a.images[-images:], "features of the first"),
    )
