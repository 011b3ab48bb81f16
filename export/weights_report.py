"""What `export.check_weights` says of the images that it made: figures, what is wrong with them, a table to paste."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from cat_serve.contract import Output

GRID_NAME = "grid.png"
# An image whose every channel is spread less than that is of one colour: sensible weights never make one.
LEAST_SPREAD_LEVELS = 2.0
# Images of different classes, or seeds, differ by tens of levels; by less than that, the class or z is not connected.
LEAST_APART_LEVELS = 1.0


def image_statistics(output: Output, classes: int, seeds: int) -> dict[str, Any]:
    """Return levels of the images, and how far apart classes are at equal seeds, and seeds within a class.

    Args:
        output: its rows class by class.
    """
    import numpy as np

    images = output.images.astype(np.float32)
    cells = images.reshape(classes, seeds, -1)
    return {
        "ok": int(output.ok.sum()),
        "count": len(images),
        "mean_level": float(images.mean()),
        "least_spread_levels": float(images.std(axis=(1, 2)).max(axis=1).min()),
        "share_at_0_or_255": float(((images == 0) | (images == 255)).mean()),
        "classes_apart_levels": _least_apart(cells),
        "seeds_apart_levels": _least_apart(cells.swapaxes(0, 1)),
        "sha256": hashlib.sha256(output.images.tobytes()).hexdigest(),
    }


def _least_apart(cells: np.ndarray) -> float | None:
    """Return the smallest mean difference between two entries of the first axis; None with one entry.

    Args:
        cells: [K, L, values]; entries are compared where the second index is equal.
    """
    import numpy as np

    pairs = [
        float(np.abs(cells[a] - cells[b]).mean(axis=-1).min())
        for a in range(len(cells))
        for b in range(a)
    ]
    return min(pairs, default=None)


def failures(report: dict[str, Any]) -> list[str]:
    """Return a sentence for everything that sensible weights would not do."""
    images = report["images"]
    found = [sentence for each in report["parity"].values() for sentence in each["failures"]]
    if images["ok"] < images["count"]:
        found.append(f"{images['count'] - images['ok']} of {images['count']} images are not ok.")
    if images["least_spread_levels"] < LEAST_SPREAD_LEVELS:
        found.append("An image is of one colour.")
    for what in ("classes", "seeds"):
        apart = images[f"{what}_apart_levels"]
        if apart is not None and apart < LEAST_APART_LEVELS:
            found.append(f"Images hardly depend on {what}: two differ by {apart:.2f} levels.")
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the report for people, a table to paste."""
    source, images, made = report["source"], report["images"], report["generated"]
    imported = source.get("imported", {})
    rows = [
        ("family, licence", f"{source.get('family', '?')}, {source.get('licence', 'not said')}"),
        ("file", f"{imported.get('file', '?')}, sha256 {imported.get('sha256', '?')}"),
        ("published, not measured here", _published(source.get("published"))),
        ("classes", ", ".join(f"{c} {name}" for c, name in report["classes"].items())),
        ("seeds of each", f"0 to {report['seeds'] - 1}"),
        ("images ok", f"{images['ok']} of {images['count']}, {report['image_size'][0]} px"),
        ("generator's output", f"mean {made['mean']:.3f}, std {made['std']:.3f}, largest {made['largest']:.2f}"),
        ("mean level", f"{images['mean_level']:.1f}"),
        ("values at 0 or 255", f"{images['share_at_0_or_255']:.2%}"),
        ("classes apart, seeds apart", f"{_levels(images['classes_apart_levels'])}, {_levels(images['seeds_apart_levels'])}"),
        *((f"{p}: ONNX Runtime against torch", _difference(each)) for p, each in report["parity"].items()),
        ("images' sha256", images["sha256"]),
        ("made with", ", ".join(f"{name} {version}" for name, version in report["made_with"].items())),
    ]  # fmt: skip
    verdict = [f"- FAILED: {sentence}" for sentence in report["failures"]] or ["Nothing failed."]
    lines = [f"## {report['model']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([*lines, "", *verdict, "", f"The images: {GRID_NAME}, one row per class.", ""])


def _levels(apart: float | None) -> str:
    return "not compared" if apart is None else f"{apart:.1f} levels"


def _published(value: Any) -> str:
    if not isinstance(value, dict):
        return "nothing for this size"
    return f"{value.get('metric')} {value.get('value')} ({value.get('source')})"


def _difference(parity_of_one: dict[str, Any]) -> str:
    difference = parity_of_one["difference"]
    psnr = "equal" if difference["psnr_db"] is None else f"PSNR {difference['psnr_db']:.1f} dB"
    verdict = "beyond the budget" if parity_of_one["failures"] else "within the budget"
    return f"{psnr}, worst value {difference['max_levels']} levels: {verdict}"
