"""The experiment as Markdown: runs, arms with what seeds change, and what that decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.experiment.plan import ARMS
from training.experiment.summary import LAST, PRIMARY, Result

# figure -> heading, digits; the diagnostics follow with their stage
HEADINGS = {
    PRIMARY: ("FD", ".2f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "coverage": ("coverage", ".3f"),
    "recognised": ("recognised", ".1%"),
    "pair_distance": ("pair distance", ".3f"),
}
DIAGNOSTIC = ".4f"


def tables(report: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Return everything that is known of the runs so far."""
    parts = [_about(report), _runs(report, results)]
    for size in dict.fromkeys(row["size"] for row in report["arms"]):
        parts.append(f"## {size}: means over seeds [least, greatest]\n\n" + _arms(report, size))
    if report["contrasts"]:
        parts.append("## CAT against its controls\n\n" + _contrasts(report["contrasts"]))
    return "\n\n".join(parts) + "\n"


def _about(report: Mapping[str, Any]) -> str:
    protocol, marks = report["protocol"], report["marks"]
    floor = report["floor"].get(PRIMARY)
    known = "" if floor is None else f" As many training photographs have an FD of {floor:.2f}."
    return (
        f"FD-EffNetLite0 and the other figures of {protocol['samples']:,} samples against {protocol['photographs']:,} "
        f"photographs, at {', '.join(f'{mark:,}' for mark in marks)} images; a run's figure is its mean over the last "
        f"{min(LAST, len(marks))} of these.{known}"
    )


def _runs(report: Mapping[str, Any], results: Sequence[Result]) -> str:
    wander = {each.planned.name: each.wander for each in results}
    lines = [
        "| run | measured at | FD at each mark | range over the last | D loss, margin | hours | commit |"
    ]
    lines.append("|---" * 7 + "|")
    for run in report["runs"]:
        rows = run["rows"]
        if not rows:
            lines.append(f"| {run['run']} | {_state(run)} | | | | | |")
            continue
        last = rows[-1]
        fds = ", ".join(f"{row['figures'][PRIMARY]:.1f}" for row in rows)
        moved = f"{wander[run['run']]:.2f}" if run["run"] in wander else _state(run)
        log = last["log"]
        losses = f"{log['d_adv']:.3f}, {log['margin']:.2f}" if log else ""
        lines.append(
            f"| {run['run']} | {last['mark']:,} | {fds} | {moved} | {losses} | {last['training_hours']:.2f} | {last['commit'] or ''} |"
        )
    return "\n".join(lines)


def _state(run: Mapping[str, Any]) -> str:
    return "diverged" if run["diverged"] else "not finished"


def _columns(row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    plain = {key: value for key, value in HEADINGS.items() if key in row["figures"]}
    stages = {key: (key, DIAGNOSTIC) for key in row["figures"] if key[:2] in ("d_", "r_", "a_")}
    return plain | stages


def _arms(report: Mapping[str, Any], size: str) -> str:
    rows = [row for row in report["arms"] if row["size"] == size]
    columns = _columns(rows[0])
    lines = ["| arm | seeds | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for row in rows:
        cells = [_cell(row["figures"].get(key), digits) for key, (_, digits) in columns.items()]
        seeds = ", ".join(map(str, row["seeds"]))
        lines.append(f"| {ARMS[row['arm']].title} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(figure: Mapping[str, float] | None, digits: str) -> str:
    if figure is None:
        return ""
    mean, low, high = (f"{figure[key]:{digits}}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def _contrasts(contrasts: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| size | control | figure | CAT - control | seeds move it by | verdict |"]
    lines.append("|---" * 6 + "|")
    for row in contrasts:
        noise = "unknown" if row["spread"] is None else f"{row['spread']:.4g} ({row['spread_of']})"
        lines.append(
            f"| {row['size']} | {ARMS[row['control']].title} | {row['figure']} | {row['difference']:+.4g} | "
            f"{noise} | {row['verdict']} |"
        )
    return "\n".join(lines)
