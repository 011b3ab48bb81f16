"""The equations that one-step families share, each as plainly as it is printed: one sample, one head, one pair at a time.

Everything takes the dtype of its input, float64 in the tests. Nothing here comes from the package that is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]

FEATURES = 256
MAX_PERIOD = 10_000.0
ROPE_BASE = 10_000.0
EPS = 1e-6


def affine(state: State, name: str, x: Tensor) -> Tensor:
    """x W^T + b; without b where the file has none."""
    y = x @ state[f"{name}.weight"].T
    bias = state.get(f"{name}.bias")
    return y if bias is None else y + bias


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x / (1 + (-x).exp())


def gelu_tanh(x: Tensor) -> Tensor:
    """Hendrycks & Gimpel's approximation, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def layer_norm(x: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + eps), without learned scale; var is the biased one."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root mean square layer normalisation, arXiv 1910.07467: x / sqrt(mean(x^2) + eps) * g."""
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def time_features(t: float) -> Tensor:
    """Return cos(t f_i), then sin(t f_i), with f_i = 10000^(-i/128): [256], float64.

    Frequencies and their product with t are float32 in every family's code, and that is what their weights have
    seen; at t = 1000 the difference to exact ones is 6e-5 of an angle.
    """
    half = FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32) / half
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents)
    angles = (torch.tensor(t, dtype=torch.float32) * frequencies).double()
    return torch.cat([angles.cos(), angles.sin()])


def time_embedding(state: State, name: str, t: float, inner: str = "") -> Tensor:
    """W2 silu(W1 features(t) + b1) + b2: [D]. `inner` is what follows a layer's number in the file's names."""
    like = state[f"{name}.mlp.0{inner}.weight"]
    hidden = silu(affine(state, f"{name}.mlp.0{inner}", time_features(t).to(like.dtype)))
    return affine(state, f"{name}.mlp.2{inner}", hidden)


def sincos_table(side: int, width: int) -> Tensor:
    """Return MAE's and DiT's fixed position table, cell by cell: float64 [side^2, width].

    First half: the column, second half: the row; in each half sines, then cosines, of place * 10000^(-i/(width/4)).
    """
    quarter = width // 4
    table = torch.zeros(side * side, width, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((column, row)):
                for i in range(quarter):
                    angle = place * 10_000.0 ** (-i / quarter)
                    token, start = row * side + column, half * width // 2
                    table[token, start + i] = math.sin(angle)
                    table[token, start + quarter + i] = math.cos(angle)
    return table


def angles_1d(tokens: int, head_dim: int) -> Tensor:
    """RoPE, arXiv 2104.09864: token m turns pair i by m * 10000^(-2i/d). Float64 [tokens, d/2]."""
    pairs = torch.arange(head_dim // 2, dtype=torch.float64)
    places = torch.arange(tokens, dtype=torch.float64)
    return places[:, None] * ROPE_BASE ** (-2 * pairs / head_dim)


def angles_2d(side: int, head_dim: int) -> Tensor:
    """RoPE over a grid: the first half of the pairs turns by the row, the second by the column. [side^2, d/2]."""
    along = angles_1d(side, head_dim // 2)
    return torch.stack(
        [torch.cat([along[row], along[column]]) for row in range(side) for column in range(side)]
    )


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each adjacent pair (a, b) of x [N, d] as the complex number a + ib by e^(i angle)."""
    turned = torch.empty_like(x)
    for pair in range(angles.shape[1]):
        cos, sin = angles[:, pair].cos().to(x.dtype), angles[:, pair].sin().to(x.dtype)
        a, b = x[:, 2 * pair], x[:, 2 * pair + 1]
        turned[:, 2 * pair] = a * cos - b * sin
        turned[:, 2 * pair + 1] = a * sin + b * cos
    return turned


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, each: Callable[[Tensor, str], Tensor]
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for one head after the other.

    Args:
        q, k, v: [N, D]; each: what happens to one head's queries ("q") and keys ("k") first, [N, d] -> [N, d].
    """
    d = q.shape[1] // heads
    outputs = []
    for start in range(0, q.shape[1], d):
        head = slice(start, start + d)
        queries, keys = each(q[:, head], "q"), each(k[:, head], "k")
        weights = torch.softmax(queries @ keys.T / math.sqrt(d), dim=-1)
        outputs.append(weights @ v[:, head])
    return torch.cat(outputs, dim=1)


def cut(image: Tensor, patch: int) -> Tensor:
    """Cut [C, H, W] into patches, row by row: [N, C * p * p], the order of a convolution's weight."""
    _, height, width = image.shape
    return torch.stack(
        [
            image[:, row : row + patch, column : column + patch].flatten()
            for row in range(0, height, patch)
            for column in range(0, width, patch)
        ]
    )


def convolve(state: State, name: str, patches: Tensor) -> Tensor:
    """A convolution whose stride is its width, on patches that were cut: [N, C * p * p] -> [N, D]."""
    return patches @ state[f"{name}.weight"].flatten(1).T + state[f"{name}.bias"]


def paste(tokens: Tensor, side: int, patch: int) -> Tensor:
    """Lay tokens [N, p * p * C] out as an image [C, side * p, side * p]; within a token the channel runs fastest."""
    channels = tokens.shape[1] // patch**2
    image = tokens.new_zeros(channels, side * patch, side * patch)
    for token, values in enumerate(tokens):
        row, column = patch * (token // side), patch * (token % side)
        square = values.reshape(patch, patch, channels).permute(2, 0, 1)
        image[:, row : row + patch, column : column + patch] = square
    return image


def filled(layout: dict[str, tuple[int, ...]], seed: int) -> State:
    """Draw a state of a layout: nothing is zero, and activations neither vanish nor explode.

    Matrices have variance 1/fan-in (tables and biases 0.04), scales are near 1: a gate that its training begins at 0
    would make any comparison vacuous.
    """
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in layout.items():
        noise = torch.randn(*shape, generator=rng)
        if key.endswith(
            ("norm.weight", "norm1.weight", "norm2.weight", "norm_final.weight", "norm.scale")
        ):
            state[key] = 1 + 0.2 * noise
        elif key.endswith("weight") and "embedding" not in key:
            state[key] = noise / math.prod(shape[1:]) ** 0.5
        else:
            state[key] = (0.5 if key.endswith(("attn_scale", "mlp_scale")) else 0.2) * noise
    return state


def doubled(state: State) -> State:
    """Return the real tensors of a state in float64."""
    return {key: value.double() for key, value in state.items() if not value.is_complex()}
