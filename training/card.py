"""The model card: what was measured, in words and tables, written from the figures and never by hand."""

from __future__ import annotations

from typing import Any


def card(figures: dict[str, Any]) -> str:
    """Return Markdown for the figures of `training.evaluate`."""
    first, last = figures["seeds"]
    head = [
        f"# {figures['model']}",
        "",
        f"Version {figures['version']}: trained on {figures['training_nimg']:,} images in "
        f"{figures['training_hours']:.1f} hours (seed {figures['seed']}).",
        "",
        f"Measured on {figures['images']:,} images of its own, {figures['engine']}, psi = "
        f"{figures['truncation_psi']:g}, seeds {first} to {last} of every class:",
        "",
    ]
    classes = ["| class | recognised |", "|---|---|"]
    classes += [f"| {n} | {share:.1%} |" for n, share in figures["recognised_by_class"].items()]
    tail = ["", "Made by `make evaluate`; docs/training.md says what each figure means.", ""]
    return "\n".join([*head, *_table(figures), "", *classes, *tail])


def _table(figures: dict[str, Any]) -> list[str]:
    pairs, frechet = figures["pair_distance"], figures["fd_effnet_lite0"]
    rows = [
        ("recognised as the class asked for", f"**{figures['recognised']:.1%}**"),
        ("the same classifier on real test photographs", f"{figures['classifier_on_real_test']:.1%}"),
        ("classifier trained only on these images, on real test photographs",
         f"**{figures['trained_on_generated']:.1%}**"),
        ("distance of pairs within a class (EfficientNet-Lite0)",
         f"{pairs['generated']:.3f}, **{pairs['ratio']:.0%}** of that of photographs"),
        ("FD-EffNetLite0 to the test photographs", f"**{frechet['generated']:.2f}**"),
        ("the same for as many training photographs", f"{frechet['real']:.2f}"),
    ]  # fmt: skip
    if "reconstructions" in frechet:
        rows.insert(2, ("the same classifier on the VAE's reconstructions of them",
                        f"{figures['classifier_on_reconstructions']:.1%}"))  # fmt: skip
        rows.append(("the same for the VAE's reconstructions", f"{frechet['reconstructions']:.2f}"))
    return ["| figure | value |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
