"""The served checkpoint: one safetensors file with weights, configuration, class names and VAE inside.

Tensors are named `generator.*`, `vae.*` and, where the latents' scale is not the VAE's own, `affine.*`; the JSON under the
metadata key `cat_serve` holds the rest. Pickles are never read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.files import written_whole
from cat_serve.model.config import GeneratorConfig
from cat_serve.model.generator import Generator
from cat_serve.model.one_step import OneStep
from cat_serve.model.one_step_config import OneStepConfig
from cat_serve.model.vae import KL, LatentAffine, load_vae, upscale, vae_class

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from cat_serve.model.vae import Vae

FORMAT = "cat-serve-checkpoint-1"
METADATA_KEY = "cat_serve"
AFFINE = "affine."

AnyGenerator: TypeAlias = Generator | OneStep

# What `generator_kind` says; a file without it holds CAT's (or GAT's) generator.
CAT, ONE_STEP = "cat", "one_step"


@dataclass
class Checkpoint:
    """A generator with everything that is needed to serve it.

    Attributes:
        name: the model's name, lower case, no slash.
        generator: in eval mode, float32; CAT's with `w_avg` inside.
        vae: in eval mode, float32; an AutoencoderTiny if the model is decoded by one; None if it makes pixels itself.
        class_names: one per class.
        training: what made the weights (configuration, images seen, data set and its licence).
        affine: from the generator's latents to the VAE's, where that is not what the VAE says.
    """

    name: str
    generator: AnyGenerator
    vae: Vae | None
    class_names: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)
    affine: LatentAffine | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in px."""
        side = self.generator.config.output_size * (upscale(self.vae) if self.vae else 1)
        return side, side


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside its name and rename it."""
    vae, affine = checkpoint.vae, checkpoint.affine
    tensors = {f"generator.{key}": t for key, t in checkpoint.generator.state_dict().items()}
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": checkpoint.name,
        "generator": checkpoint.generator.config.to_dict(),
        "vae_class": None,
        "vae": {},
        "class_names": list(checkpoint.class_names),
        "training": checkpoint.training,
    }
    if isinstance(checkpoint.generator, OneStep):
        description["generator_kind"] = ONE_STEP
    if vae is not None:
        tensors |= {f"vae.{key}": tensor for key, tensor in vae.state_dict().items()}
        description["vae_class"] = type(vae).__name__
        description["vae"] = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    if affine is not None:
        tensors |= {f"{AFFINE}mean": affine.mean, f"{AFFINE}std": affine.std}
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(description)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint strictly: every tensor consumed, none missing.

    Raises:
        CheckpointError: no such file, damaged, another format, or keys and shapes that do not fit.
    """
    description, tensors = read_safetensors(path)
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{path.name} has format {description.get('format')!r}, not {FORMAT!r}.",
            hint="checkpoints are written by python -m training.train",
        )
    try:
        generator = _build_generator(
            description.get("generator_kind", CAT), description["generator"]
        )
        vae = _build_vae(description.get("vae_class", KL), description["vae"])
        name, training = description["name"], description["training"]
        class_names = tuple(description["class_names"])
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} has an unusable description: {error!r}") from error
    fill(generator, tensors, "generator.", path)
    if vae is not None:
        fill(vae, tensors, "vae.", path)
    affine = _take_affine(tensors, generator, path)
    if tensors:
        raise CheckpointError(
            f"{path.name} holds tensors that belong nowhere: {sorted(tensors)[:5]}."
        )
    return Checkpoint(
        name=name,
        generator=generator.eval().requires_grad_(False),
        vae=None if vae is None else vae.eval().requires_grad_(False),
        class_names=class_names,
        training=training,
        affine=affine,
    )


def cat_generator(checkpoint: Checkpoint) -> Generator:
    """Return a checkpoint's generator where only CAT's will do.

    Raises:
        CheckpointError: it holds another family's, which has no mapping, no stages and no training here.
    """
    if isinstance(checkpoint.generator, Generator):
        return checkpoint.generator
    raise CheckpointError(
        f"{checkpoint.name} is no CAT generator: it was imported, and has neither stages nor a mapping network.",
        hint="training and its diagnostics take checkpoints of python -m training.train, or of GAT",
    )


def _build_generator(kind: str, config: dict[str, Any]) -> AnyGenerator:
    if kind == CAT:
        return Generator(GeneratorConfig.from_dict(config))
    if kind == ONE_STEP:
        return OneStep(OneStepConfig.from_dict(config))
    raise ValueError(f"no generator is called {kind!r}")


def _take_affine(
    tensors: dict[str, Tensor], generator: AnyGenerator, path: Path
) -> LatentAffine | None:
    """Take the latents' scale out of `tensors`; None if the VAE's own holds.

    Raises:
        CheckpointError: half of it, or shapes that do not fit the latents.
    """
    found = [tensors.pop(f"{AFFINE}{name}", None) for name in ("mean", "std")]
    mean, std = found
    if mean is None and std is None:
        return None
    config = generator.config
    latents = (config.output_channels, config.output_size, config.output_size)
    if mean is None or std is None or not all(_broadcasts(t, latents) for t in (mean, std)):
        shapes = [None if t is None else tuple(t.shape) for t in found]
        raise CheckpointError(f"{path.name} has a scale of latents that does not fit: {shapes}.")
    return LatentAffine(mean, std)


def _broadcasts(tensor: Tensor, latents: tuple[int, ...]) -> bool:
    return tensor.dim() == 3 and all(
        side in (1, whole) for side, whole in zip(tensor.shape, latents, strict=True)
    )


def _build_vae(kind: str | None, config: dict[str, Any]) -> Vae | None:
    """Build a VAE from its configuration; what the class notes for itself is no argument of it."""
    if kind is None:
        return None
    own = {key: value for key, value in config.items() if key != "block_out_channels" or kind == KL}
    vae: Vae = vae_class(kind)(**own)
    return vae


def open_vae(path: Path) -> AutoencoderKL:
    """Load the VAE inside a checkpoint of this project, or one of diffusers (see `load_vae`).

    Raises:
        CheckpointError: there is none, or the checkpoint has a decoder that encodes nothing.
    """
    if not path.is_file() and path.suffix != ".safetensors":
        return load_vae(path)
    vae = load_checkpoint(path).vae
    if type(vae).__name__ != KL:
        raise CheckpointError(
            f"{path.name} holds {f'an {type(vae).__name__}' if vae else 'no VAE'}, which has no posterior to learn from.",
            hint="name the VAE, or the checkpoint, that the generator was trained with",
        )
    return cast("AutoencoderKL", vae)


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON description and the tensors of one of this project's safetensors files."""
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        description = json.loads(metadata[METADATA_KEY])
        if not isinstance(description, dict):
            raise ValueError(f"the description is a {type(description).__name__}")
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is damaged, or no checkpoint of this project: {error}"
        ) from error
    return description, tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Move the tensors named `prefix*` out of `tensors` into `module`; keys and shapes must match."""
    own: Mapping[str, Tensor] = {
        key.removeprefix(prefix): tensors.pop(key)
        for key in list(tensors)
        if key.startswith(prefix)
    }
    try:
        module.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path.name} does not fit its own configuration: {error}") from error


def save_module(path: Path, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write one module's weights with a JSON description (the discriminator beside its generator)."""
    tensors = {key: tensor.detach().contiguous() for key, tensor in module.state_dict().items()}
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(dict(description))})


def parameter_count(module: nn.Module) -> int:
    """Return the number of learned values; buffers such as `w_avg` are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())
