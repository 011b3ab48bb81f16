"""What a run would be, before it is one: sizes, multiplications, memory, steps. Nothing is allocated.

GMACs are counted on the meta device by torch. The cost of a step follows from who is passed through what
(`step_macs`), the memory from what autograd keeps of one block (`saved_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cat_serve.model.checkpoint import parameter_count
from cat_serve.model.generator import Block as GeneratorBlock
from cat_serve.model.generator import Generator
from training.config import TrainConfig
from training.discriminator import Block as DiscriminatorBlock
from training.discriminator import Discriminator
from training.engine import BUCKET_VALUES, Runtime
from training.representation import Projector
from training.share import Share

FLOAT32_BYTES = 4
# Width of the features, millions of parameters, GMACs an image: ViT-B/14 at 224 px, EfficientNet-Lite0 at 128 px.
_TEACHERS = {"none": (0, 0.0, 0.0), "dinov2-vitb14": (768, 86.6, 23.2), "efficientnet-lite0": (1280, 4.65, 0.13)}  # fmt: skip
NO_MEMORY_OF = "the VAE, the previews, and what the allocator cannot use"


class Sizes:
    """Both networks and the projector on the meta device: parameters, and GMACs of one image forward."""

    def __init__(self, config: TrainConfig) -> None:
        width, millions, gmacs = _TEACHERS[config.representation.teacher]
        with torch.device("meta"):
            self.generator = Generator(config.generator)
            self.discriminator = Discriminator(config.discriminator)
            hidden = config.representation.projector_width
            self.projector = Projector(config.discriminator.width, width, hidden) if width else None
        self.teacher_parameters = round(millions * 1e6)
        self.generator_macs = _forward_macs(self._generate)
        self.discriminator_macs = _forward_macs(self._judge)
        self.projector_macs = _forward_macs(self._project)
        self.teacher_macs = round(gmacs * 1e9)

    def _generate(self) -> None:
        self.generator(torch.zeros(1, self.generator.config.z_dim), torch.zeros(1).long())

    def _judge(self) -> None:
        config = self.discriminator.config
        images = [torch.zeros(1, config.latent_channels, s, s) for s in config.scales]
        self.discriminator(images, torch.zeros(1).long())

    def _project(self) -> None:
        if self.projector:
            tokens = self.discriminator.group_sizes[-1]
            self.projector(torch.zeros(1, tokens, self.discriminator.config.width))


def _forward_macs(work: Any) -> int:
    """Count the multiplications of a forward pass."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def step_macs(sizes: Sizes, config: TrainConfig, runtime: Runtime) -> float:
    """Return the multiplications of one whole step (D + G), for each image of the batch.

    A pass with gradients costs three forward passes, one through frozen weights two; checkpointing adds a forward
    pass to both. In the D step G makes an image (1 pass), D judges real, fake and, of every n-th sample, both
    with noise. In bf16 the penalties need passes of their own, of both with and without noise. In the G step G
    learns, D judges the real image (1 forward pass) and, frozen, the fake one.
    """
    again = int(runtime.checkpointing)
    pairs = 2 if runtime.precision == "bf16" else 1
    judged = 2 + 2 * pairs / config.penalty_every
    generator = 1 + (3 + again)
    discriminator = judged * (3 + again) + 1 + (2 + again)
    return (
        generator * sizes.generator_macs
        + discriminator * sizes.discriminator_macs
        + (3 * sizes.projector_macs + sizes.teacher_macs)
    )


# --- memory --------------------------------------------------------------------------------------


@contextmanager
def _noting(storages: dict[int, Any]) -> Iterator[None]:
    """Collect the storages that autograd keeps for the backward pass."""

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield


def saved_bytes(block: nn.Module, inputs: tuple[Any, ...], bf16: bool) -> int:
    """Return the bytes that autograd keeps of one block's forward pass, the weights left out.

    Args:
        block, inputs: fake tensors, made under the FakeTensorMode that is active.
    """
    storages: dict[int, Any] = {}
    with _noting(storages), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        block(*inputs)
    for parameter in block.parameters():
        storages.pop(parameter.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in storages.values())


def block_bytes(config: TrainConfig, bf16: bool) -> tuple[int, int]:
    """Return what autograd keeps of one image in one block of G and in one of D."""
    g, d = config.generator, config.discriminator
    with FakeTensorMode(allow_non_fake_inputs=True):
        generator = GeneratorBlock(g.width, g.heads, g.modulation)
        tokens = g.tokens_per_side**2
        u = torch.zeros(1, tokens, g.width, requires_grad=True)
        w = torch.zeros(1, g.width, requires_grad=True)
        rope = torch.zeros(2, tokens, g.width // g.heads)
        of_generator = saved_bytes(generator, (u, w, rope), bf16)
        judge = DiscriminatorBlock(d.width, d.heads)
        groups = tuple(1 + (scale // d.patch) ** 2 for scale in d.scales)
        u = torch.zeros(1, sum(groups), d.width, requires_grad=True)
        rope = torch.zeros(2, sum(groups), d.width // d.heads)
        of_judge = saved_bytes(judge, (u, rope, groups, None), bf16)
    return of_generator, of_judge


def activation_bytes(config: TrainConfig, runtime: Runtime, images: int) -> int:
    """Return what autograd keeps at most, of `images` images in one process: in D's step or in G's.

    D's step keeps D's blocks for real, fake and noised images; G's step keeps G's blocks and D's for the fake
    image. With checkpointing a block keeps its input alone, and one block at a time all of it. Patch embeddings,
    heads and losses are left out: a few per cent.
    """
    bf16, d, g = runtime.precision == "bf16", config.discriminator, config.generator
    _, picked = Share.whole(images).every(config.penalty_every)
    exact = 2 * picked.total
    of_generator, of_judge = block_bytes(config, bf16)
    in_float32 = block_bytes(config, False)[1] if bf16 else of_judge
    tokens = sum(1 + (scale // d.patch) ** 2 for scale in d.scales)
    judge_input = FLOAT32_BYTES * tokens * d.width
    generator_input = FLOAT32_BYTES * g.tokens_per_side**2 * g.width
    noised = exact * (2 if bf16 else 1)  # in bf16 also without noise, again
    if runtime.checkpointing:
        judged = (2 * images + noised) * d.depth * judge_input
        judged += max(2 * images * of_judge, noised * in_float32)
        made = images * (g.depth * generator_input + d.depth * judge_input)
        return judged if judged > made else made + images * max(of_generator, of_judge)
    judged = d.depth * (2 * images * of_judge + noised * in_float32)
    return max(judged, images * (g.depth * of_generator + d.depth * of_judge))


def memory_bytes(
    sizes: Sizes, config: TrainConfig, runtime: Runtime, images: int
) -> dict[str, int]:
    """Return the memory of one process that has `images` images of the batch, in bytes."""
    learning = [sizes.generator, sizes.discriminator] + (
        [sizes.projector] if sizes.projector else []
    )
    trained = FLOAT32_BYTES * sum(parameter_count(network) for network in learning)
    parts = {
        "weights": trained + FLOAT32_BYTES * sizes.teacher_parameters,
        "gradients": trained,
        "optimizer": 2 * trained,  # both moments of AdamW
        "ema": FLOAT32_BYTES * parameter_count(sizes.generator),
        "exchange": FLOAT32_BYTES * BUCKET_VALUES if images < config.batch_size else 0,
        "activations": activation_bytes(config, runtime, images),
    }
    return parts | {"total": sum(parts.values())}


# --- the report ----------------------------------------------------------------------------------


def plan(config: TrainConfig, count: int, runtime: Runtime, processes: int = 1) -> dict[str, Any]:
    """Return the report of a run on `count` images by `processes` processes."""
    sizes = Sizes(config)
    images = max(share.stop - share.start for share in _shares(config.batch_size, processes))
    macs = step_macs(sizes, config, runtime)
    memory = {
        name: memory_bytes(sizes, config, how, images)
        for name, how in (("kept", _with(runtime, False)), ("checkpointing", _with(runtime, True)))
    }
    g, d = config.generator, config.discriminator
    dead = 1 + g.patch**2 * g.latent_channels + g.tokens_per_side**2  # what the papers count beside
    return {
        "name": config.name,
        "params": {
            "generator": parameter_count(sizes.generator),
            "generator_as_published": parameter_count(sizes.generator) + dead * g.width,
            "discriminator": parameter_count(sizes.discriminator),
            "projector": parameter_count(sizes.projector) if sizes.projector else 0,
            "teacher": sizes.teacher_parameters,
        },
        "gmacs": {
            "generator": round(sizes.generator_macs / 1e9, 3),
            "discriminator": round(sizes.discriminator_macs / 1e9, 3),
            "step_per_image": round(macs / 1e9, 3),
        },
        "memory_bytes": memory["checkpointing" if runtime.checkpointing else "kept"],
        "activation_bytes": {name: parts["activations"] for name, parts in memory.items()},
        "memory_leaves_out": NO_MEMORY_OF,
        "processes": processes, "images_per_process": images, "precision": runtime.precision,
        "images": count, "batch_size": config.batch_size, "total_nimg": config.total_nimg,
        "steps_per_epoch": math.ceil(count / config.batch_size),
        "steps": math.ceil(config.total_nimg / config.batch_size),
        "epochs": round(config.total_nimg / count, 3),
        "flops": 2 * macs * config.total_nimg,
        "lr": {"generator": config.lr(g.width), "discriminator": config.lr(d.width)},
    }  # fmt: skip


def _shares(batch: int, processes: int) -> list[Share]:
    return [Share.of(rank, processes, batch) for rank in range(processes)]


def _with(runtime: Runtime, checkpointing: bool) -> Runtime:
    return Runtime(runtime.precision, checkpointing)
