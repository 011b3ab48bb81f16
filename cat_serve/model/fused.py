"""Generator, truncation, VAE decoder and rounding as one module with the tensor contract of the service."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cat_serve.contract import Batch, Output
from cat_serve.model.checkpoint import Checkpoint
from cat_serve.model.decoder import Decoder, to_uint8
from cat_serve.model.generator import Generator
from cat_serve.model.layers import EqualizedLinear


class FusedModel(nn.Module):
    """(z, class_id, truncation_psi) -> (images, ok); see `cat_serve.contract`."""

    def __init__(self, generator: Generator, decoder: Decoder) -> None:
        super().__init__()
        self.generator = generator
        self.decoder = decoder
        self.num_classes = generator.config.num_classes

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> FusedModel:
        """Fuse a checkpoint's parts; the checkpoint itself is left as it is."""
        generator = fold_equalized(copy.deepcopy(checkpoint.generator))
        return cls(generator, Decoder(copy.deepcopy(checkpoint.vae))).eval().requires_grad_(False)

    def forward(self, z: Tensor, class_id: Tensor, truncation_psi: Tensor) -> tuple[Tensor, Tensor]:
        """Make images; a bad row gives ok = False and harms no other row.

        Args:
            z: float32 [B, z_dim]; class_id: int64 [B]; truncation_psi: float32 [B].

        Returns:
            images uint8 [B, H, W, 3], and ok bool [B]: class and psi in range, and every decoded value finite
            before the clamp (uint8 would hide it).
        """
        class_ok = (class_id >= 0) & (class_id < self.num_classes)
        psi_ok = (truncation_psi >= 0) & (truncation_psi <= 1)  # False for NaN
        psi = torch.where(psi_ok, truncation_psi, torch.ones_like(truncation_psi))
        latents = self.generator(z, class_id.clamp(0, self.num_classes - 1), psi)
        images = self.decoder(latents).float()
        finite = torch.isfinite(images)
        ok = class_ok & psi_ok & finite.flatten(1).all(dim=1)
        return to_uint8(torch.where(finite, images, torch.zeros_like(images))), ok

    @torch.inference_mode()
    def run(self, batch: Batch) -> Output:
        """Run a batch of arrays on the CPU."""
        images, ok = self(*(torch.from_numpy(array) for array in batch.feeds().values()))
        return Output(images.numpy(), ok.numpy())


def fold_equalized(generator: Generator) -> Generator:
    """Replace the mapping's equalized layers by plain ones with the effective weights, in place."""
    for name, layer in list(generator.mapping.named_children()):
        if isinstance(layer, EqualizedLinear):
            weight, bias = layer.effective()
            plain = nn.Linear(weight.shape[1], weight.shape[0])
            plain.load_state_dict({"weight": weight, "bias": bias})
            setattr(generator.mapping, name, plain)
    return generator
