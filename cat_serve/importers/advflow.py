"""AdvFlow: "Adversarial Flow Models", arXiv 2511.22475: x0 = G(z, class), a DiT trained against a discriminator.

The 28-layer model has no time. The deep ones run the same blocks K times (2: 56 layers, 4: 112), round k with the embedding of
1000 (1 - k/K) added to the class; the last layer sees the class alone. The class table has no row for no class.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cat_serve.errors import InvalidInput
from cat_serve.importers import ImportOptions, dit_layout
from cat_serve.importers.imported import Imported, scalar
from cat_serve.importers.tensors import Tensors
from cat_serve.model.one_step import OneStep

WHOSE = "AdvFlow's generator"
WEIGHTS = {"ema": None}  # a file is one state dict
SIZES = {(12, 768): "b", (16, 1024): "m", (24, 1024): "l", (28, 1152): "xl"}
PUBLISHED = {"advflow-xl2-256": 2.38, "advflow-xl2-56-256": 2.08, "advflow-xl2-112-256": 1.94}
TIME_SCALE = 1000
TRAINED_ON = "stabilityai/sd-vae-ft-mse"


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network and what it was folded with.

    Raises:
        InvalidInput: `repeats` is missing, or has no meaning for this file.
    """
    deep = "t_embedder.mlp.0.weight" in tensors
    repeats = options.repeats or 1
    if deep != (repeats > 1):
        raise InvalidInput(
            f"{tensors.path.name} has {'a' if deep else 'no'} time embedding, and --repeats is {options.repeats}.",
            hint="--repeats 2 is for the 56-layer file, 4 for that of 112 layers, none for the others; files for several "
            "steps are not read",
        )
    layers = tensors.count("blocks.") * repeats
    return Imported(
        generator=_build(tensors, options, repeats),
        affine=scalar(0.18215),
        size_suffix=f"-{layers}" if deep else "",
        folded={"repeats": repeats} if deep else {},
    )


def _build(tensors: Tensors, options: ImportOptions, repeats: int) -> OneStep:
    def order(depth: int) -> list[tuple[int, int]]:
        return [(index, table) for table in range(repeats) for index in range(depth)]

    def times(width: int) -> Sequence[Tensor | None]:
        if repeats == 1:
            return [None]
        embed = tensors.embedder("t_embedder", width)
        return [*(embed(TIME_SCALE * (1 - k / repeats)) for k in range(repeats)), None]

    last = 0 if repeats == 1 else repeats
    return dit_layout.build(tensors, options.heads, order, times, null_row=False, head_table=last)
