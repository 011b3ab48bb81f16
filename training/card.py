"""The model card: what was measured, in words and tables, written from the figures and never by hand."""

from __future__ import annotations

from typing import Any

from training.evaluation.table import main_table, settings_table, what


def card(figures: dict[str, Any]) -> str:
    """Return Markdown for the figures of `training.evaluate`."""
    parts = [f"# {figures['model']}", _training(figures), what(figures)]
    parts.append("\n".join(main_table(figures)))
    if "settings" in figures:
        parts.append("\n".join(settings_table(figures["settings"])))
    if by_class := figures.get("recognised_by_class"):
        known = {name: share for name, share in by_class.items() if share is not None}
        rows = [f"| {name} | {share:.1%} |" for name, share in known.items()]
        parts.append("\n".join(["| class | recognised |", "|---|---|", *rows]))
    parts.append(
        f"Measured in {figures['hours']:.2f} hours by `{figures['command']}`; docs/evaluation.md says what each figure means."
    )
    return "\n\n".join(parts) + "\n"


def _training(figures: dict[str, Any]) -> str:
    """Say what the training cost, as far as it is known."""
    if figures["training_nimg"] is None:
        return f"Version {figures['version']}."
    hours = (
        "" if figures["training_hours"] is None else f" in {figures['training_hours']:.1f} hours"
    )
    return (
        f"Version {figures['version']}: trained on {figures['training_nimg']:,} images{hours} "
        f"(seed {figures['seed']})."
    )
