"""What a form of a model is: its identity, how exactly it computes, and a call that makes images by seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cat_serve.contract import Precision
from cat_serve.errors import InvalidInput
from cat_serve.manifest import Determinism

if TYPE_CHECKING:
    from cat_serve.contract import Output
    from cat_serve.manifest import Manifest
    from export.probes import Seeded


@dataclass(frozen=True)
class Identity:
    """Which model a form is of.

    Attributes:
        checkpoint_sha256: of the weights all forms come from; None if the form does not say.
        class_names: one per class; None if the form knows only how many there are.
        z_shape: of one latent, without the batch.
        image_size: (height, width) in px.
    """

    checkpoint_sha256: str | None
    num_classes: int
    class_names: tuple[str, ...] | None
    z_shape: tuple[int, ...]
    image_size: tuple[int, int]

    @classmethod
    def of(cls, manifest: Manifest) -> Identity:
        """Return the identity of an exported model."""
        return cls(
            checkpoint_sha256=manifest.source.get("checkpoint_sha256"),
            num_classes=manifest.num_classes,
            class_names=manifest.class_names,
            z_shape=manifest.z_shape,
            image_size=manifest.image_size,
        )


@dataclass(frozen=True)
class Form:
    """A model in one form, opened.

    Attributes:
        name: what it was opened by.
        engine: what computes, with its version.
        precision: a row of `export.parity.BUDGETS`.
        determinism: `bytes` if a row must not change with its batch.
        max_batch: the most rows it takes at once; None if it sets no limit.
        run: makes the images of some rows, uint8 [B, H, W, 3], and says which are ok.
        opt_batch: the rows that it was tuned for; None if for none in particular.
    """

    name: str
    engine: str
    identity: Identity
    precision: str
    determinism: Determinism
    max_batch: int | None
    run: Callable[[Seeded], Output]
    opt_batch: int | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of form.

    Attributes:
        shown: how its names look, for people.
        fits: says whether a name is one of its kind, by the name and by what lies there.
        open: opens a name; the precision is the one that was asked for, where the name leaves it open.
    """

    shown: str
    fits: Callable[[str], bool]
    open: Callable[[str, Precision], Form]


def require_same_model(a: Form, b: Form) -> None:
    """Refuse two forms that are not of one checkpoint.

    Raises:
        InvalidInput: another checkpoint, other classes or other shapes; says which.
    """
    one, other = a.identity, b.identity
    differ = []
    if one.checkpoint_sha256 is None or one.checkpoint_sha256 != other.checkpoint_sha256:
        hashes = (str(form.checkpoint_sha256)[:12] for form in (one, other))
        differ.append("checkpoint sha256 {} and {}".format(*hashes))
    if one.num_classes != other.num_classes:
        differ.append(f"{one.num_classes} classes and {other.num_classes} classes")
    elif (pair := _different_class(one, other)) is not None:
        differ.append(
            "{n} classes with {!r} and {n} classes with {!r}".format(*pair, n=one.num_classes)
        )
    if one.z_shape != other.z_shape:
        differ.append(f"z {list(one.z_shape)} and {list(other.z_shape)}")
    if one.image_size != other.image_size:
        differ.append("images of {}x{} and {}x{} px".format(*one.image_size, *other.image_size))
    if differ:
        raise InvalidInput(
            f"{a.name} and {b.name} do not belong together: {'; '.join(differ)}.",
            hint="compare forms of one checkpoint; an export's manifest says which it came from",
        )


def _different_class(one: Identity, other: Identity) -> tuple[str, str] | None:
    """Return the first names that differ; None if none does, or if one of both knows no names."""
    if one.class_names is None or other.class_names is None:
        return None
    pairs = zip(one.class_names, other.class_names, strict=True)
    return next((pair for pair in pairs if pair[0] != pair[1]), None)
