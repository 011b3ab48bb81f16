"""Compare any two forms of one model on fixed seeds, and hold the difference to a budget.

    python -m export.verify checkpoints/fashion-32.safetensors model_repository/fashion-32/1 --precision fp16
    python -m export.verify model_repository/fashion-32/1/model.onnx model_repository/fashion-32/1/model.fp16.onnx
    python -m export.verify checkpoints/fashion-32.safetensors 'http://127.0.0.1:8000?model=fashion-32' --budget full
    python -m export.verify model_repository/fashion-32/1 grpc://127.0.0.1:8001/fashion-32

A form is a checkpoint (torch, float32, the CPU), an exported version folder or one of its plain graphs (ONNX Runtime
on the CPU), a TensorRT engine of export.trt (on the first GPU), a model in a Triton server, or a running cat-serve. A table goes to stderr, one line of JSON to stdout. Exit code 0: within the
budget, 1: not, or a form is damaged; 2: forms that do not belong together, wrong usage, or something missing here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cat_serve.contract import Precision
from export.parity import BUDGETS
from export.probes import MAX_CLASSES

if TYPE_CHECKING:
    from export.comparison import VerifyOptions

BUDGET_NAMES = ("quick", "full")
FULL_IMAGES = 1000


def table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    difference, budget = report["difference"], report["budget"]
    psnr = "equal" if difference["psnr_db"] is None else f"{difference['psnr_db']:.2f} dB"
    worst = "reported" if budget["max_levels"] is None else f"<= {budget['max_levels']}"
    lines = [
        f"{letter}  {form['name']}\n   {form['engine']}, {form['precision']}, {form['determinism']}: "
        f"{form['ok']} of {form['images']} images ok"
        for letter, form in zip("AB", report["forms"], strict=True)
    ]
    figures = [
        ("A against B", "found", f"{report['held_to']} allows"),
        ("PSNR", psnr, f">= {budget['min_psnr_db']:g} dB"),
        ("99.99 % of values within", f"{difference['almost_all_levels']:g} levels",
         f"<= {budget['almost_all_levels']}"),
        ("worst value", f"{difference['max_levels']} levels", worst),
        ("values that differ", f"{difference['share_differing']:.4%}", "reported"),
        ("cosine, worst image", f"{difference['min_cosine']:.8f}", "reported"),
        ("rows not ok", str(difference["not_ok"]), "0"),
    ]  # fmt: skip
    if "fd_effnetlite0" in report:
        figures.append(("FD-EffNetLite0", f"{report['fd_effnetlite0']:.5f}", "reported"))
    for letter, form in zip("AB", report["forms"], strict=True):
        for size, levels in form["batches"].items():
            found = f"{levels['against_alone_levels']} and {levels['equal_rows_levels']} levels"
            what = f"{letter}: batch of {size} against 1, equal rows"
            figures.append((what, found, f"<= {form['rows_budget_levels']}"))
    lines += ["", *(f"{what:<38} {found:>16}   {allowed}" for what, found, allowed in figures), ""]
    lines += [f"FAILED: {failure}" for failure in report["failures"]] or ["within the budget"]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.verify", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add, forms = (
        parser.add_argument,
        "a checkpoint, a version folder, one of its graphs, an engine, grpc://HOST:PORT/MODEL of a Triton, "
        "or http://HOST:PORT[?model=NAME] of a cat-serve",
    )
    add("a", metavar="A", help=forms)
    add("b", metavar="B", help="the same; which of both comes first changes nothing")
    add("--precision", choices=get_args(Precision), default="fp32",
        help="of a folder: which graph; every other form says its own (default: %(default)s)")  # fmt: skip
    add("--budget", choices=BUDGET_NAMES, default="quick",
        help=f"full: {FULL_IMAGES} images or more beside, and FD-EffNetLite0 between both (default: %(default)s)")  # fmt: skip
    add("--images", type=int, metavar="N", help=f"of a full comparison (default: {FULL_IMAGES})")
    add(
        "--hold-to",
        choices=BUDGETS,
        help="row of the budgets (default: the coarser of both forms')",
    )
    add("--parity-classes", type=int, default=MAX_CLASSES, metavar="N",
        help="compare 3N images; fewer for a decoder that takes seconds an image (default: %(default)s)")  # fmt: skip
    add(
        "--max-batch",
        type=int,
        metavar="N",
        help="no larger batches (default: what both forms take)",
    )
    add("--json", type=Path, metavar="FILE", help="write the report here too")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="export")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare as the arguments say; return what to report."""
    from cat_serve.files import write_text
    from export.comparison import verify
    from export.forms import open_form

    options = options_of(arguments)
    a, b = (open_form(name, arguments.precision) for name in (arguments.a, arguments.b))
    report = verify(a, b, options)
    print(table(report), file=sys.stderr)
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(report, indent=1) + "\n")
    return report


def options_of(arguments: argparse.Namespace) -> VerifyOptions:
    """Check what argparse cannot.

    Raises:
        InvalidInput: a number is too small, --images has no meaning, or FILE has no folder.
    """
    from cat_serve.errors import InvalidInput
    from export.comparison import VerifyOptions

    full = arguments.budget == "full"
    if arguments.images is not None and not full:
        raise InvalidInput("--images has no meaning for a quick comparison.", hint="--budget full")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise InvalidInput(f"--json {arguments.json}: there is no folder {arguments.json.parent}.")
    images = FULL_IMAGES if arguments.images is None else arguments.images
    smallest = {"images": FULL_IMAGES, "parity_classes": 1, "max_batch": 1}
    given = {"images": images, "parity_classes": arguments.parity_classes,
             "max_batch": arguments.max_batch}  # fmt: skip
    for name, least in smallest.items():
        if given[name] is not None and given[name] < least:
            flag = "--" + name.replace("_", "-")
            raise InvalidInput(f"{flag} is {given[name]}; it must be at least {least}.")
    return VerifyOptions(
        classes=arguments.parity_classes,
        max_batch=arguments.max_batch,
        full_images=images if full else 0,
        hold_to=arguments.hold_to,
    )


if __name__ == "__main__":
    sys.exit(main())
