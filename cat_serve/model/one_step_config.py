"""The shape of a one-step transformer: which parts the generators of other papers are made of. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from cat_serve.errors import InvalidInput

Norm = Literal["layer", "rms"]
Conditioning = Literal["tables", "gates"]
Ffn = Literal["gelu", "swiglu"]
Rope = Literal["none", "sequence", "grid"]

_CHOICES = {"norm": Norm, "conditioning": Conditioning, "ffn": Ffn, "rope": Rope}


@dataclass(frozen=True)
class OneStepConfig:
    """What a one-step transformer is made of; x = skip * z * z_scale + gain * F(z * z_scale, class).

    Attributes:
        width, heads, hidden: of the tokens, and of the feed-forward network inside.
        patch, size, channels: z and the result are [channels, size, size], cut into patches.
        num_classes: that users may ask for; a family's null class is none.
        order: of every executed block, which weights it has and which table of conditioning it reads.
        head_table: which table the head reads.
        norm: `layer` has neither scale nor shift; `rms` has a learned scale.
        conditioning: `tables`: blocks and head are modulated by a row for each class; `gates`: learned gates, the
            same for every class, and a head without modulation: then the class comes in by tokens.
        rope: rotary positions along the whole `sequence`, on the `grid` of image tokens alone, or `none`.
        bias: whether attention and feed-forward have biases.
        positions: whether a table of positions is added to the image's tokens.
        class_tokens, constant_tokens: before the image's; a class's embedding is added to the former.
        z_scale: of the noise, which always comes in as N(0, 1).
        skip, gain: see above.
    """

    width: int
    heads: int
    hidden: int
    patch: int
    size: int
    channels: int
    num_classes: int
    order: tuple[tuple[int, int], ...]
    head_table: int = 0
    norm: Norm = "layer"
    conditioning: Conditioning = "tables"
    ffn: Ffn = "gelu"
    qk_norm: bool = False
    rope: Rope = "none"
    bias: bool = True
    positions: bool = True
    class_tokens: int = 0
    constant_tokens: int = 0
    z_scale: float = 1.0
    skip: float = 0.0
    gain: float = 1.0

    stages = 0  # of a studio: there is none
    psi_meaning = "none"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise InvalidInput(
                    f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(choices))}."
                )
        if self.size % self.patch:
            raise InvalidInput(f"A side of {self.size} cannot be cut into patches of {self.patch}.")
        if self.width % self.heads:
            raise InvalidInput(f"width {self.width} does not divide into {self.heads} heads.")
        multiple = {"none": 1, "sequence": 2, "grid": 4}[self.rope]
        if self.head_width % multiple:
            raise InvalidInput(
                f"Heads of {self.head_width} channels have no rotary positions of kind {self.rope!r}.",
                hint=f"a multiple of {multiple}",
            )
        if not self.order or sorted({weights for weights, _ in self.order}) != list(
            range(self.depth)
        ):
            raise InvalidInput("order must use every block's weights, numbered from 0.")
        if self.conditioning == "gates" and not self.class_tokens:
            raise InvalidInput("Without tables and class tokens nothing would depend on the class.")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def depth(self) -> int:
        """How many blocks there are weights of."""
        return 1 + max(weights for weights, _ in self.order)

    @property
    def tables(self) -> int:
        """How many tables of conditioning there are."""
        if self.conditioning == "gates":
            return 0
        return 1 + max(self.head_table, *(table for _, table in self.order))

    @property
    def tokens_per_side(self) -> int:
        return self.size // self.patch

    @property
    def prefix_tokens(self) -> int:
        return self.class_tokens + self.constant_tokens

    @property
    def z_shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    @property
    def output_size(self) -> int:
        """Side of what is handed to the decoder."""
        return self.size

    @property
    def output_channels(self) -> int:
        return self.channels

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OneStepConfig:
        """Rebuild a configuration; an unknown or missing key is an error that names it."""
        known = {field.name for field in fields(cls)}
        required = {"width", "heads", "hidden", "patch", "size", "channels", "num_classes", "order"}
        if unknown := sorted(values.keys() - known):
            raise InvalidInput(f"Unknown generator settings: {', '.join(unknown)}.")
        if missing := sorted(required - values.keys()):
            raise InvalidInput(f"Missing generator settings: {', '.join(missing)}.")
        order = tuple((int(weights), int(table)) for weights, table in values["order"])
        return cls(**{**values, "order": order})
