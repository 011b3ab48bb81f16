"""The report of `export.gpu_check` as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MIB = 2**20


def markdown(report: dict[str, Any]) -> str:
    """Return a report that can be pasted into a discussion."""
    verdict = "**Passed.**" if report["passed"] else "**FAILED.**"
    parts = [
        f"## GPU check: {report['machine'].get('GPU', 'no GPU')}",
        "\n".join([verdict, *(f"* {failure}" for failure in report["failures"])]),
        table(("what", "which"), report["machine"].items()),
        f"Model `{report['model']}`, version `{report['model_version']}`. Times are of whole calls, copies to and "
        "from the GPU included. Memory is what the GPU had less of while the engine was open.",
    ]
    for engine in report["engines"]:
        parts += engine_parts(engine)
    if report["triton_left_out"]:
        parts += ["### Triton", f"Left out: {report['triton_left_out']}."]
    for served in report["triton"]:
        parts += triton_parts(served)
    return "\n\n".join(parts)


def engine_parts(engine: dict[str, Any]) -> list[str]:
    """Return the paragraphs on one engine."""
    made = "taken from the cache, built" if engine["cached"] else "built"
    return [
        f"### {engine['graph']}",
        f"The engine was {made} in {engine['build_s']} s: {engine['size_bytes'] / MIB:.1f} MiB, sha256 "
        f"`{engine['sha256'][:12]}`. Memory: {engine['memory_bytes'] / MIB:.0f} MiB.",
        parity_table(engine["parity"]),
        latency_table(engine["latency"]),
    ]


def parity_table(parity: dict[str, Any]) -> str:
    """Return what was found, beside what is allowed."""
    found, budget = parity["difference"], parity["budget"]
    psnr = "equal" if found["psnr_db"] is None else f"{found['psnr_db']} dB"
    worst = "reported" if budget["max_levels"] is None else f"at most {budget['max_levels']}"
    rows = [
        ("PSNR", psnr, f"at least {budget['min_psnr_db']} dB"),
        ("99.99 % of the values within", f"{found['almost_all_levels']:.0f} levels", f"{budget['almost_all_levels']}"),
        ("worst value", f"{found['max_levels']} levels", worst),
        ("values that differ", f"{found['share_differing']:.3%}", "reported"),
        ("rows not ok", found["not_ok"], "0"),
    ]  # fmt: skip
    for size, levels in parity["batches"].items():
        seen = f"{levels['against_alone_levels']} and {levels['equal_rows_levels']} levels"
        rows.append((f"batch of {size} against 1, equal rows", seen, f"at most {parity['rows_budget_levels']}"))  # fmt: skip
    against = f"against {parity['reference']}, {found['images']} images"
    return table((against, "found", "allowed"), rows)


def latency_table(latencies: Iterable[dict[str, Any]]) -> str:
    """Return latency and throughput by batch."""
    rows = [(t["batch"], t["median_ms"], t["p95_ms"], t["images_per_s"]) for t in latencies]
    return table(("batch", "median ms", "p95 ms", "images/s"), rows)


def triton_parts(served: dict[str, Any]) -> list[str]:
    """Return the paragraphs on one engine in Triton."""
    if "log" in served:
        log = "\n".join(served["log"])
        return [f"### Triton, {served['precision']}", f"{served['failures'][0]} Its last words:",
                f"```text\n{log}\n```"]  # fmt: skip
    return [
        f"### Triton {served['version']}, {served['precision']}",
        f"Over gRPC, the worst value is {served['max_levels']} levels from the engine's own "
        f"({served['allowed_levels']} allowed).",
        latency_table(served["latency"]),
    ]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )
