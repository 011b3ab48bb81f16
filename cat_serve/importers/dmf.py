"""DMF: "Decoupled MeanFlow", arXiv 2510.24474: the first blocks see t, the others and the last layer r.

x0 = z - u(z, t = 1, r = 0, class); one embedding serves both times. How many blocks see t is not in the file: 20 of 28 in
the published XL/2.
"""

from __future__ import annotations

from cat_serve.errors import InvalidInput
from cat_serve.importers import ImportOptions, dit_layout
from cat_serve.importers.imported import Imported, scalar
from cat_serve.importers.tensors import Tensors

WHOSE = "DMF's generator"
WEIGHTS = {"ema": None}
SIZES = {(12, 384): "s", (12, 768): "b", (24, 1024): "l", (28, 1152): "xl"}
PUBLISHED = {"dmf-xl2-256": 2.16, "dmf-xl2-512": 2.12}
TRAINED_ON = "stabilityai/sd-vae-ft-ema"
ENCODER_BLOCKS = {28: 20}
LOGVAR = "logvar_linear."  # of its training's loss


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network, both times folded in.

    Raises:
        InvalidInput: nothing says how many blocks see t, or there are not as many.
    """
    tensors.drop(LOGVAR)
    depth = tensors.count("blocks.")
    first = options.encoder_blocks or ENCODER_BLOCKS.get(depth)
    if first is None or not 0 < first < depth:
        raise InvalidInput(
            f"{tensors.path.name} has {depth} blocks, and --encoder-blocks is {options.encoder_blocks}.",
            hint=f"how many of them see t: 1 to {depth - 1} (20 of 28 in the published XL/2)",
        )
    generator = dit_layout.build(
        tensors, options.heads,
        lambda blocks: [(index, int(index >= first)) for index in range(blocks)],
        lambda width: [tensors.embedder("t_embedder", width)(time) for time in (1.0, 0.0)],
        head_table=1, skip=1.0, gain=-1.0,
    )  # fmt: skip
    return Imported(generator, scalar(0.18215), folded={"t": 1.0, "r": 0.0, "encoder_blocks": first})  # fmt: skip
