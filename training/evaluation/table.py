"""The figures as Markdown: one table of the samples beside photographs and reconstructions, one of several settings."""

from __future__ import annotations

from typing import Any

# figure of one setting -> heading, digits
COLUMNS = {
    "recognised": ("recognised", ".1%"),
    "pair_distance": ("pair distance", ".3f"),
    "fd": ("FD", ".2f"),
    "kd": ("KD", ".4f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "density": ("density", ".3f"),
    "coverage": ("coverage", ".3f"),
    "inception_score": ("IS", ".2f"),
}

# distance -> digits, and what it is called; an FID is one on Inception's features alone
DISTANCES = {
    "fd_effnet_lite0": ".2f",
    "kd_effnet_lite0": ".4f",
    "fid": ".2f",
    "kid": ".4f",
    "inception_score": ".2f",
}
TITLES = {
    "fd_effnet_lite0": "FD-EffNetLite0",
    "kd_effnet_lite0": "KD-EffNetLite0",
    "fid": "FID",
    "kid": "KID",
    "inception_score": "Inception Score (of the test photographs beside it)",
}


def tables(figures: dict[str, Any]) -> str:
    """Return everything that was measured as Markdown."""
    parts = [
        f"# {figures['model']}, version {figures['version']}",
        what(figures),
        "\n".join(main_table(figures)),
    ]
    if "settings" in figures:
        parts.append("\n".join(settings_table(figures["settings"])))
    if command := figures.get("command"):
        parts.append(f"Made by `{command}`.")
    return "\n\n".join(parts) + "\n"


def what(figures: dict[str, Any]) -> str:
    """Say in a sentence what was measured, of what, against what."""
    drawn = ""
    if "truncation_psi" in figures:
        first, last = figures["seeds"]
        of = "every class" if figures["labels"] == "balanced" else "labels at random"
        drawn = f", psi = {figures['truncation_psi']:g}, seeds {first} to {last} of {of}"
    return (
        f"Measured on {figures['images']:,} images of its own, {figures['engine']}{drawn}, against "
        f"{figures['photographs']:,} photographs of {figures['reference']} in features of {figures['features']}."
    )


def main_table(figures: dict[str, Any]) -> list[str]:
    """Return the lines of a table: samples, training photographs, the VAE's reconstructions."""
    rows = [*_judged(figures), *_features(figures), *_neighbours(figures)]
    head = ["| figure | samples | photographs | reconstructions |", "|---|---|---|---|"]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def _judged(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if "recognised" in figures:
        rows.append((
            "recognised by a classifier of training photographs", f"**{figures['recognised']:.1%}**",
            f"{figures['classifier_on_real_test']:.1%}", _optional(figures.get("classifier_on_reconstructions"), ".1%"),
        ))  # fmt: skip
    if "trained_on_generated" in figures:
        rows.append((
            "test photographs recognised by a classifier trained on these", f"**{figures['trained_on_generated']:.1%}**",
            _optional(figures.get("classifier_on_real_test"), ".1%"), "",
        ))  # fmt: skip
    return rows


def _features(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if pairs := figures.get("pair_distance"):
        generated = f"{pairs['generated']:.3f} (**{pairs['ratio']:.0%}**)"
        rows.append(("distance of pairs within a class", generated, f"{pairs['real']:.3f}", ""))
    for key, digits in DISTANCES.items():
        if of := figures.get(key):
            others = (_optional(of.get(name), digits) for name in ("real", "reconstructions"))
            rows.append((TITLES[key], f"**{of['generated']:{digits}}**", *others))
    if balls := figures.get("manifolds"):
        real = balls.get("real", {})
        rows += [(key, f"{value:.3f}", _optional(real.get(key), ".3f"), "") for key, value in balls["generated"].items()]  # fmt: skip
    return rows


def _neighbours(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    if not (near := figures.get("neighbours")):
        return []
    unseen = near.get("unseen", {})
    rows: list[tuple[str, ...]] = [
        (f"distance to the nearest of {near['searched']:,} training photographs, median",
         f"{near['generated']['median']:.2f}", _optional(unseen.get("median"), ".2f"), ""),
        ("the same, 5th percentile", f"{near['generated']['p5']:.2f}", _optional(unseen.get("p5"), ".2f"), ""),
    ]  # fmt: skip
    if "nearer_than_unseen" in near:
        share = f"{near['nearer_than_unseen']:.1%}"
        rows.append(("nearer to one than an unseen photograph is", share, "50.0%", ""))
    return rows


def settings_table(settings: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with a row for each setting."""
    columns = {key: value for key, value in COLUMNS.items() if key in settings[0]}
    lines = ["| labels | psi | images | " + " | ".join(title for title, _ in columns.values()) + " |"]  # fmt: skip
    lines.append("|---" * (3 + len(columns)) + "|")
    for row in settings:
        cells = [f"{row[key]:{digits}}" for key, (_, digits) in columns.items()]
        head = f"| {row['labels']} | {row['truncation_psi']:g} | {row['images']:,} | "
        lines.append(head + " | ".join(cells) + " |")
    return lines


def _optional(value: float | None, digits: str) -> str:
    return "" if value is None else f"{value:{digits}}"
