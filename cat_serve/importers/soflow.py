"""SoFlow: "Solution Flow Models for One-Step Generative Modeling", arXiv 2512.15657: x0 = z - F(z, t = 1, s = 0, class).

DiT with a second time embedding, which is fed t - s. The class table ends with the row of no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cat_serve.importers import ImportOptions, dit_layout
from cat_serve.importers.imported import Imported, scalar
from cat_serve.importers.tensors import Tensors, embedded_at

WHOSE = "SoFlow's generator"
WEIGHTS = {"ema": "ema_model", "generator": "model"}
PREFIX = "network."
SIZES = {(12, 768): "b", (16, 1024): "m", (24, 1024): "l", (28, 1152): "xl"}
PUBLISHED = {"soflow-b2-256": 4.85, "soflow-m2-256": 3.73, "soflow-l2-256": 3.20, "soflow-xl2-256": 2.96}  # fmt: skip
TRAINED_ON = "stabilityai/sd-vae-ft-mse"
EMBEDDERS = ("t_embedder", "s_embedder")


def own_names(state: Any) -> Any:
    """Leave out the wrapper's prefix."""
    if not isinstance(state, Mapping):
        return state
    return {str(key).removeprefix(PREFIX): tensor for key, tensor in state.items()}


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network, t = 1 and t - s = 1 folded in."""
    generator = dit_layout.build(
        tensors, options.heads, dit_layout.one_table,
        lambda width: [embedded_at(tensors, EMBEDDERS, width, 1.0)],
        skip=1.0, gain=-1.0,
    )  # fmt: skip
    return Imported(generator, scalar(0.18215), folded={"t": 1.0, "s": 0.0})
