"""Draw the computed images/s of GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from benchmarks.roofline import Gpu, pairs, rates

BATCHES = [2**power for power in range(7)]


def draw(gpus: Iterable[Gpu], path: Path) -> None:
    """Draw images/s by batch, the geometric mean of both estimates: a panel for each model and decoder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cat_serve.files import written_whole

    figure, panels = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, sharey=True)
    for panel, (model, decoder) in zip(panels.flat, pairs(), strict=True):
        for gpu in gpus:
            middle = [math.sqrt(math.prod(rates(model, decoder, gpu, batch))) for batch in BATCHES]
            # H100 and H200 compute alike: the dashes let the line below be seen.
            style = "--" if gpu.name == "H200" else "-"
            panel.plot(BATCHES, middle, style, marker="o", markersize=3, label=gpu.name)
        panel.set(xscale="log", yscale="log", title=f"{model}, {decoder} decoder")
        panel.set_xticks(BATCHES, map(str, BATCHES))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    for panel in panels[1]:
        panel.set_xlabel("batch")
    for panel in panels[:, 0]:
        panel.set_ylabel("images/s of one GPU")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        "Computed, not measured: FP16, 256 px, middle of an estimate that spans a factor of two"
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    pyplot.close(figure)
