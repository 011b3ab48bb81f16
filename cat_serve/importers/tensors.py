"""A published state dict that is taken apart: every tensor is used, or dropped by name, and none is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from cat_serve.errors import CheckpointError, InvalidInput

TIME_FEATURES = 256
MAX_PERIOD = 10_000.0
SHOWN = 5
# Attention heads of the published sizes, by width: a file of DiT's layout does not say how many it has.
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16}


class Tensors:
    """Tensors by their published names; each may be taken as often as it is needed.

    Args:
        state: float32; tensors on the meta device are taken too, whose shapes alone are then held to the layout.
        whose: how errors name the layout, "AdvFlow's generator".
    """

    def __init__(self, state: Mapping[str, Tensor], path: Path, whose: str) -> None:
        self.state = dict(state)
        self.path, self.whose = path, whose
        self.used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def take(self, key: str, *shape: int) -> Tensor:
        """Return a tensor, of this shape if one is given.

        Raises:
            CheckpointError: it is not there, has another shape, or a value that is not finite.
        """
        if key not in self.state:
            raise self.refusal(f"there is no tensor {key}")
        tensor = self.state[key]
        if shape and tuple(tensor.shape) != shape:
            raise self.refusal(f"{key} has shape {tuple(tensor.shape)}, not {shape}")
        if key not in self.used and not tensor.is_meta and not tensor.isfinite().all():
            raise CheckpointError(f"{self.path.name}: {key} is not finite.")
        self.used.add(key)
        return tensor

    def shape(self, key: str, dimensions: int) -> tuple[int, ...]:
        """Return a tensor's shape, by which a network's sizes are known."""
        tensor = self.take(key)
        if tensor.dim() != dimensions:
            raise self.refusal(
                f"{key} has shape {tuple(tensor.shape)}, not {dimensions} dimensions"
            )
        return tuple(tensor.shape)

    def drop(self, *prefixes: str) -> None:
        """Leave out the tensors of these names, or of names that begin so, if they are there."""
        self.used |= {key for key in self.state if key.startswith(prefixes)}

    def count(self, prefix: str) -> int:
        """Return how many numbered blocks there are below `prefix`, which must be numbered from 0 on."""
        starts = (key.removeprefix(prefix) for key in self.state if key.startswith(prefix))
        numbers = {int(start) for key in starts if (start := key.split(".")[0]).isdigit()}
        if numbers != set(range(len(numbers))) or not numbers:
            raise self.refusal(f"its {prefix}* are {sorted(numbers)[:SHOWN]}")
        return len(numbers)

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
            CheckpointError: tensors that no equation of the family uses.
        """
        if left := sorted(self.state.keys() - self.used):
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            raise self.refusal(
                f"it holds tensors that belong nowhere: {', '.join(left[:SHOWN])}{more}"
            )

    def refusal(self, reason: str) -> CheckpointError:
        """Return the error that this is another file."""
        return CheckpointError(
            f"{self.path.name} is not {self.whose}: {reason}.",
            hint="cat-serve import --list shows the families; is it the file of another one, or of another version?",
        )

    def embedder(self, name: str, width: int, inner: str = "") -> Callable[[float], Tensor]:
        """Return the embedding of a number, W2 SiLU(W1 features + b1) + b2: float -> float32 [width].

        Args:
            inner: what follows the layers' numbers in their names.
        """
        first, second = f"{name}.mlp.0{inner}", f"{name}.mlp.2{inner}"
        w1, b1 = self.take(f"{first}.weight", width, TIME_FEATURES), self.take(f"{first}.bias", width)  # fmt: skip
        w2, b2 = self.take(f"{second}.weight", width, width), self.take(f"{second}.bias", width)

        def embed(value: float) -> Tensor:
            features = time_features(value).to(w1.device)
            hidden = functional.silu(functional.linear(features, w1.double(), b1.double()))
            return functional.linear(hidden, w2.double(), b2.double()).float()

        return embed


def embedded_at(tensors: Tensors, names: Sequence[str], width: int, value: float) -> Tensor:
    """Return the sum of several embeddings of one number, float32 [width]."""
    return torch.stack([tensors.embedder(name, width)(value) for name in names]).sum(0)


def time_features(value: float) -> Tensor:
    """Return cos(t f_i), then sin(t f_i), with f_i = 10000^(-i/128): float64 [256].

    The angles are rounded to float32 on the way, as training rounds them: at t = 1000 that is seen.
    """
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32) / half
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents)
    angles = (torch.tensor(value, dtype=torch.float32) * frequencies).double()
    return torch.cat([angles.cos(), angles.sin()])


def heads_of(width: int, given: int | None) -> int:
    """Return how many attention heads a network of this width has, which no tensor tells.

    Raises:
        InvalidInput: no published size has it, and nobody said.
    """
    heads = given or HEADS.get(width)
    if heads is None:
        raise InvalidInput(
            f"No published size has width {width}, and the file does not say how many attention heads there are.",
            hint="give them with --heads",
        )
    if width % heads:
        raise InvalidInput(f"A width of {width} does not divide into {heads} heads.")
    return heads


def patch_weights(weight: Tensor) -> Tensor:
    """Turn a convolution's weight [C, channels, p, p] into that of a linear layer on patches, [C, p*p*channels]."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def scale_before_shift(rows: Tensor, parts: Sequence[int]) -> Tensor:
    """Put the chunks of a modulation's rows into another order, [parts * C, ...]."""
    chunks = rows.chunk(len(parts), dim=0)
    return torch.cat([chunks[part] for part in parts])


def sided(tokens: int, tensors: Tensors) -> int:
    """Return the side of a square of tokens."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise tensors.refusal(f"{tokens} image tokens are no square")
    return side
