"""MeanFlow: "Mean Flows for One-step Generative Modeling", arXiv 2505.13447, in the layout of github.com/zhuyu-cs/MeanFlow.

x0 = z - u(z, r = 0, t = 1, class) with SiT's network under the embeddings of t and of t - r. Its code decodes by
2 std * latents + mean, channel by channel. Guidance is in the weights.
"""

from __future__ import annotations

from cat_serve.importers import ImportOptions, dit_layout
from cat_serve.importers.imported import Imported, per_channel
from cat_serve.importers.tensors import Tensors, embedded_at

WHOSE = "MeanFlow's generator"
WEIGHTS = {"ema": "ema", "generator": "model"}
SIZES = {(12, 768): "b", (24, 1024): "l", (28, 1152): "xl"}
PUBLISHED: dict[str, float] = {}  # the paper's 3.43 is of its authors' weights, which are not out
TRAINED_ON = "stabilityai/sd-vae-ft-ema"
MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
STD = (9.71007348, 10.63844508, 7.87450796, 7.9740006)
EMBEDDERS = ("t_embedder", "r_embedder")


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network, t = 1 and t - r = 1 folded in."""
    generator = dit_layout.build(
        tensors, options.heads, dit_layout.one_table,
        lambda width: [embedded_at(tensors, EMBEDDERS, width, 1.0)],
        skip=1.0, gain=-1.0,
    )  # fmt: skip
    return Imported(generator, per_channel(MEAN, STD), folded={"t": 1.0, "r": 0.0})
