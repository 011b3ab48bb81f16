"""The settings of a run as flags of the command line: one table, and how what was given replaces the preset's."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.data import Index
    from training.engine import Runtime


@dataclass(frozen=True)
class Option:
    """One flag and the setting that it replaces, `part.name` for one of a part's.

    Attributes:
        kind: a type; a tuple of the values accepted; or `bool`, which makes --flag and --no-flag.
    """

    flag: str
    setting: str
    kind: Any
    help: str
    many: bool = False


def _table() -> tuple[Option, ...]:
    number, count = float, int
    fills, parts = ("zero", "edge"), ("colour", "translation", "cutout")
    attentions = ("scale_wise", "masked", "aggregated")
    return (
        Option("--name", "name", str, "name of the model (default: the preset's)"),
        Option("--total-nimg", "total_nimg", count, "images to train on"),
        Option("--batch-size", "batch_size", count, "images per step"),
        Option("--base-lr", "base_lr", number, "learning rate at width 768 and batch 512"),
        Option("--lr-decay-nimg", "lr_decay_nimg", count, "images at the end over which it falls to a tenth"),
        Option("--gamma", "gamma", number, "weight of the R1 and R2 penalties, held for the whole run"),
        Option("--gamma-final", "gamma_final", number, "what gamma falls to instead"),
        Option("--gamma-anneal-nimg", "gamma_anneal_nimg", count, "images over which it falls"),
        Option("--penalty-sigma", "penalty_sigma", number, "of the noise of the penalties"),
        Option("--penalty-every", "penalty_every", count, "the penalties look at every n-th sample"),
        Option("--label-weight", "label_weight", number, "weight of D's cross-entropy of the label"),
        Option("--lambda", "consistency.weight", number, "weight of the consistency loss (0: the paper's control)"),
        Option("--detach-anchor", "consistency.detach_anchor", bool, "the final stage gets no gradient from it"),
        Option("--at-scale", "consistency.at_scale", bool, "compare after resizing both to the stage's scale"),
        Option("--omegas", "consistency.omegas", ("inverse", "uniform"), "weights of the stages, 1/(K-k) or 1"),
        Option("--resize", "resize", ("area", "bilinear"), "how images are shrunk to the scales"),
        Option("--attention", "discriminator.attention", attentions, "the discriminator's, across scales"),
        Option("--augment", "augmentations", parts, "parts of DiffAugment that are on (none given: none)", many=True),
        Option("--flip-probability", "flip_probability", number, "share of samples that are mirrored"),
        Option("--translation-fill", "translation_fill", fills, "what a translation brings in"),
        Option("--teacher", "representation.teacher", str, "none, efficientnet-lite0 or dinov2-vitb14"),
        Option("--teacher-weight", "representation.weight", number, "weight of the alignment with it"),
        Option("--modulation", "generator.modulation", ("shift", "no_shift"), "CAT's or GAT's blocks"),
        Option("--seed", "seed", count, "of every draw"),
    )  # fmt: skip


OPTIONS = _table()


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting; what is not given stays as the preset has it."""
    group = parser.add_argument_group("settings (default: the preset's)")
    for option in OPTIONS:
        keywords: dict[str, Any] = {"help": option.help, "default": None}
        if option.kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif isinstance(option.kind, tuple):
            keywords["choices"] = option.kind
        else:
            keywords |= {"type": option.kind, "metavar": option.flag[2:].rpartition("-")[2].upper()}
        if option.many:
            keywords["nargs"] = "*"
        group.add_argument(option.flag, dest=_destination(option), **keywords)
    group.add_argument("--width", type=int, help="of generator and discriminator")


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags for how a run computes; a run may go on with others."""
    group = parser.add_argument_group("how it computes (no part of what a run is)")
    group.add_argument(
        "--precision", choices=("float32", "bf16"), default="float32",
        help="bf16: autocast; mapping, logits, losses and penalties stay float32",
    )  # fmt: skip
    group.add_argument(
        "--checkpointing", action="store_true", help="less memory: compute activations again"
    )
    group.add_argument("--compile", action="store_true", help="compile the blocks (torch.compile)")
    group.add_argument("--cpu", action="store_true", help="stay on the CPU where there is a GPU")
    group.add_argument(
        "--timeout-minutes", type=float, default=30.0, metavar="MINUTES",
        help="how long a process waits for the others (default: 30)",
    )  # fmt: skip


def resolve_runtime(arguments: argparse.Namespace) -> Runtime:
    """Return how the run computes."""
    from training.engine import Runtime

    return Runtime(**{field.name: getattr(arguments, field.name) for field in fields(Runtime)})


def _destination(option: Option) -> str:
    return "set_" + option.flag[2:].replace("-", "_")


def resolve_config(arguments: argparse.Namespace, index: Index | None) -> TrainConfig:
    """Return the preset as the data make it (without any: as it is), with the settings that were given."""
    from training.presets import preset_for_data, train_preset

    if index is None:
        config = train_preset(arguments.preset)
    else:
        config = preset_for_data(arguments.preset, index)
    given = {o.setting: getattr(arguments, _destination(o)) for o in OPTIONS}
    given |= {f"{part}.width": arguments.width for part in ("generator", "discriminator")}
    if given["gamma"] is not None:
        config = replace(config, gamma_final=None)
    return with_settings(config, {key: v for key, v in given.items() if v is not None})


def with_settings(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """Return `config` with settings replaced, `part.name` for those of a part."""
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        part, _, name = key.rpartition(".")
        value = tuple(value) if isinstance(value, list) else value
        if part:
            changes[part] = replace(changes.get(part, getattr(config, part)), **{name: value})
        else:
            changes[name] = value
    return replace(config, **changes)
