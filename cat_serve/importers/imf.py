"""iMF: "Improved Mean Flows", arXiv 2512.02012, in the layout of its PyTorch files: x0 = z - u(z, h = 1, class, guidance).

Guidance is an input of the network, so omega and its interval are chosen when the file is imported. RoPE turns every token
by its place in the sequence. Latents are normalised channel by channel, without SD-VAE's 0.18215.
"""

from __future__ import annotations

import math

from cat_serve.errors import InvalidInput
from cat_serve.importers import ImportOptions
from cat_serve.importers.imported import Imported, per_channel
from cat_serve.importers.mit_layout import NET, Guidance, block_names, build
from cat_serve.importers.tensors import Tensors

WHOSE = "iMF's generator"
WEIGHTS = {"ema": None}
SIZES = {(12, 768): "b", (24, 768): "m", (32, 1024): "l", (48, 1024): "xl"}
PUBLISHED = {"imf-b2-256": 3.32, "imf-m2-256": 2.26, "imf-l2-256": 1.83, "imf-xl2-256": 1.72}
TRAINED_ON = "stabilityai/sd-vae-ft-mse"
# The file tells neither the latent grid (its positions are rotations) nor the scale of the latents.
SIZE = 32
MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
STD = (4.85503674, 5.31922414, 3.93725398, 3.9870003)
# of the published evaluation
RECOMMENDED = {
    "b": Guidance(8.0, 0.4, 0.65),
    "m": Guidance(10.5, 0.4, 0.6),
    "l": Guidance(10.5, 0.4, 0.6),
    "xl": Guidance(8.0, 0.42, 0.62),
}


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network with guidance folded in.

    Raises:
        InvalidInput: it is of no published size, and guidance is missing; guidance below 1, or times outside 0..1.
    """
    weight, width = f"{NET}x_embedder.proj.weight", tensors.shape(f"{NET}x_embedder.proj.bias", 1)[0]  # fmt: skip
    embedding = tensors.take(weight), tensors.take(f"{NET}x_embedder.proj.bias")
    _, channels, patch, _ = tensors.shape(weight, 4)
    tensors.take(weight, width, channels, patch, patch)
    size = SIZES.get((len(block_names(tensors)), width), "")
    guidance = known_guidance(RECOMMENDED.get(size), options, tensors)
    generator = build(
        tensors,
        guidance,
        embedding,
        size=SIZE,
        positions=False,
        rope="sequence",
        skip=1.0,
        gain=-1.0,
    )
    return Imported(generator, per_channel(MEAN, STD), folded=guidance.to_dict())


def known_guidance(
    recommended: Guidance | None, options: ImportOptions, tensors: Tensors
) -> Guidance:
    """Return the guidance of the options, that of a published size where they say nothing.

    Raises:
        InvalidInput: it is of no published size, and the options leave something open.
    """
    if recommended is None and None in (options.omega, options.t_min, options.t_max):
        raise InvalidInput(
            f"{tensors.path.name} is of no published size, so nothing is known of its guidance.",
            hint="give --omega, --t-min and --t-max; 1, 0 and 1 are no guidance",
        )
    return chosen_guidance(recommended or Guidance(1.0, 0.0, 1.0), options)


def chosen_guidance(recommended: Guidance, options: ImportOptions) -> Guidance:
    """Return the guidance of the options, the family's where they say nothing.

    Raises:
        InvalidInput: omega is below 1, or the interval does not lie in 0..1.
    """
    given = {name: getattr(options, name) for name in ("omega", "t_min", "t_max")}
    values = recommended.to_dict() | {k: v for k, v in given.items() if v is not None}
    guidance = Guidance(**values)
    if not (math.isfinite(guidance.omega) and guidance.omega >= 1):
        raise InvalidInput(f"--omega is {guidance.omega}.", hint="at least 1, which is no guidance")
    if not 0 <= guidance.t_min <= guidance.t_max <= 1:
        raise InvalidInput(
            f"--t-min is {guidance.t_min} and --t-max {guidance.t_max}.",
            hint="an interval of 0..1; the whole of it guides everywhere",
        )
    return guidance
