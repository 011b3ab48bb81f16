"""Generator, truncation, VAE decoder and rounding as one module with a tensor contract of the service."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from cat_serve.contract import (
    WEIGHT_SUM_TOLERANCE,
    Batch,
    Output,
    Precision,
    StudioBatch,
    StudioOutput,
)
from cat_serve.model.checkpoint import AnyGenerator, Checkpoint, cat_generator
from cat_serve.model.decoder import Decoder, Pixels, rounded
from cat_serve.model.generator import Generator
from cat_serve.model.layers import EqualizedLinear


class _Fused(nn.Module):
    """What the plain and the studio form share: the parts, their precision, and pixels from latents."""

    def __init__(self, generator: AnyGenerator, decoder: Decoder | Pixels) -> None:
        super().__init__()
        self.generator = generator
        self.decoder = decoder
        self.num_classes = generator.config.num_classes

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, trunk: Precision = "fp32", decoder: Precision = "fp32"
    ) -> Self:
        """Fuse a checkpoint's parts; the checkpoint itself is left as it is.

        Args:
            trunk: precision of blocks and heads; mapping, norms and rounding are float32 always.
            decoder: precision of the VAE decoder. A halved module is for tracing: a CPU takes minutes for it.
        """
        generator, vae = copy.deepcopy(checkpoint.generator), copy.deepcopy(checkpoint.vae)
        if isinstance(generator, Generator):
            fold_equalized(generator)
        model = cls(generator, Pixels() if vae is None else Decoder(vae, checkpoint.affine))
        if trunk == "fp16":
            model.generator.halve()
        if decoder == "fp16":
            model.decoder.halve()
        return model.eval().requires_grad_(False)

    def render(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Decode latents [N, C, h, w] to levels, float32 [N, H, W, 3]; bool [N]: where every value was finite.

        The cast to uint8 must be the last thing in a graph: TensorRT has that type for outputs alone.
        """
        images = self.decoder(latents).float()
        finite = torch.isfinite(images)
        levels = rounded(torch.where(finite, images, torch.zeros_like(images)))
        return levels, finite.flatten(1).all(dim=1)


class FusedModel(_Fused):
    """(z, class_id, truncation_psi) -> (images, ok); see `cat_serve.contract`."""

    def forward(self, z: Tensor, class_id: Tensor, truncation_psi: Tensor) -> tuple[Tensor, Tensor]:
        """Make images; a bad row gives ok = False and harms no other row.

        Args:
            z: float32 [B, *z_shape]; class_id: int64 [B]; truncation_psi: float32 [B].

        Returns:
            images uint8 [B, H, W, 3], and ok bool [B]: class and psi in range, and every decoded value finite
            before the clamp (uint8 would hide it).
        """
        class_ok = in_range(class_id, self.num_classes)
        psi, psi_ok = usable_psi(truncation_psi)
        latents = self.generator(z, class_id.clamp(0, self.num_classes - 1), psi)
        levels, finite = self.render(latents)
        return levels.to(torch.uint8), class_ok & psi_ok & finite

    @torch.inference_mode()
    def run(self, batch: Batch) -> Output:
        """Run a batch of arrays on the CPU."""
        images, ok = self(*(torch.from_numpy(array) for array in batch.feeds().values()))
        return Output(images.numpy(), ok.numpy())


class StudioModel(_Fused):
    """(z, class_id, class_weight, truncation_psi) -> (images, ok, stage_images); see `cat_serve.contract`."""

    generator: Generator

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, trunk: Precision = "fp32", decoder: Precision = "fp32"
    ) -> Self:
        """Fuse a checkpoint's parts, as `FusedModel` does.

        Raises:
            CheckpointError: the generator has no stages, and no class embeddings to mix.
        """
        cat_generator(checkpoint)
        return super().from_checkpoint(checkpoint, trunk, decoder)

    def forward(
        self, z: Tensor, class_id: Tensor, class_weight: Tensor, truncation_psi: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make images of mixtures of classes, and of every stage; a bad row harms no other.

        Args:
            z: float32 [B, z_dim]; class_id: int64 [B, S]; class_weight: float32 [B, S];
            truncation_psi: float32 [B].

        Returns:
            images uint8 [B, H, W, 3]; ok bool [B], which also needs weights >= 0 with a sum of 1 and every
            class of a weight above 0 in range; stage_images uint8 [B, K, H, W, 3].
        """
        used_ok = (in_range(class_id, self.num_classes) | (class_weight == 0)).all(dim=1)
        weight, weight_ok = usable_weights(class_weight)
        psi, psi_ok = usable_psi(truncation_psi)
        w = self.generator.mix(z, class_id.clamp(0, self.num_classes - 1), weight, psi)
        stages = torch.stack(self.generator.synthesis(w), dim=1)
        levels, finite = self.render(stages.flatten(0, 1))
        count = self.generator.config.stages
        by_stage = levels.unflatten(0, (-1, count))
        ok = used_ok & weight_ok & psi_ok & finite.unflatten(0, (-1, count)).all(dim=1)
        return by_stage[:, -1].to(torch.uint8), ok, by_stage.to(torch.uint8)

    @torch.inference_mode()
    def run(self, batch: StudioBatch) -> StudioOutput:
        """Run a batch of arrays on the CPU."""
        images, ok, stages = self(*(torch.from_numpy(array) for array in batch.feeds().values()))
        return StudioOutput(images.numpy(), ok.numpy(), stages.numpy())


def in_range(class_id: Tensor, num_classes: int) -> Tensor:
    """Say which class ids exist."""
    return (class_id >= 0) & (class_id < num_classes)


def usable_psi(truncation_psi: Tensor) -> tuple[Tensor, Tensor]:
    """Return psi with 1 in the place of values outside 0..1 or NaN, and which rows were right."""
    ok = (truncation_psi >= 0) & (truncation_psi <= 1)  # False for NaN
    return torch.where(ok, truncation_psi, torch.ones_like(truncation_psi)), ok


def usable_weights(class_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [B, S] with equal shares in the place of bad rows, and which rows were right [B]."""
    total = class_weight.sum(dim=1)
    ok = (class_weight >= 0).all(dim=1) & ((total - 1).abs() <= WEIGHT_SUM_TOLERANCE)
    return torch.where(ok.unsqueeze(1), class_weight, torch.ones_like(class_weight)), ok


def fold_equalized(generator: Generator) -> Generator:
    """Replace the mapping's equalized layers by plain ones with the effective weights, in place."""
    for name, layer in list(generator.mapping.named_children()):
        if isinstance(layer, EqualizedLinear):
            weight, bias = layer.effective()
            plain = nn.Linear(weight.shape[1], weight.shape[0])
            plain.load_state_dict({"weight": weight, "bias": bias})
            setattr(generator.mapping, name, plain)
    return generator
