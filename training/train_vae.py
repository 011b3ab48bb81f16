"""Train the small VAE whose latents the generator works in (diffusers' AutoencoderKL).

    python -m training.train_vae --out checkpoints/fashion-32.vae

The loss is mean |x - x_hat| + kl_weight * mean KL(q(latent | x) || N(0, 1)), both means over elements.
Mean and standard deviation of every latent channel are measured on the training photographs and stored
in the config under diffusers' names `latents_mean` and `latents_std`. Interrupted runs resume from --run.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.sources import add_source_arguments, open_folder
from training.vae import measure_latents, psnr_db, reconstruct, save_vae, to_unit

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL

    from training.sources import Source

MEASURED = 10_000
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # the last is Arm's
SLOW_BF16 = (
    "this processor has no instructions for bfloat16, which takes many times as long as float32 then; "
    "give --no-bf16"
)


@dataclass(frozen=True)
class VaeTraining:
    """What decides the weights. Times are in images."""

    widths: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 4
    kl_weight: float = 5e-4
    batch_size: int = 64
    lr: float = 1.5e-3
    warmup_nimg: int = 2_000
    total_nimg: int = 100_000
    bf16: bool = True
    seed: int = 0
    initial: str | None = None  # hash of the VAE whose weights it starts from
    data: str | None = None  # what the image folder holds; None is Fashion-MNIST


def build_vae(config: VaeTraining, image_size: int) -> AutoencoderKL:
    """Make an untrained VAE: one halving between consecutive widths."""
    from diffusers import AutoencoderKL

    levels = len(config.widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=image_size,
        scaling_factor=1.0,
    )


def load_weights(vae: AutoencoderKL, initial: AutoencoderKL) -> None:
    """Copy the weights of `initial`.

    Raises:
        CheckpointError: it has another shape.
    """
    from cat_serve.errors import CheckpointError

    try:
        vae.load_state_dict(initial.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"The VAE to start from has another shape: {error}",
            hint="give its --widths and --latent-channels",
        ) from error


def learning_rate(config: VaeTraining, nimg: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(1.0, (nimg + config.batch_size) / config.warmup_nimg)
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * nimg / config.total_nimg))


def train(
    config: VaeTraining,
    images: np.ndarray,
    run: Path,
    state_seconds: float = 60.0,
    initial: AutoencoderKL | None = None,
) -> AutoencoderKL:
    """Train on uint8 [N, H, W, 3] photographs; keep the state in `run` so that it can be resumed.

    Args:
        initial: where the weights start; by default they are drawn.
    """
    import torch
    from tqdm import tqdm

    from cat_serve.errors import TrainingDiverged
    from training.state import load_state, save_state
    from training.streams import shuffled_indices, stream_at

    torch.manual_seed(config.seed)
    vae = build_vae(config, images.shape[1])
    if initial is not None:
        load_weights(vae, initial)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0)
    state_path, nimg = run / "vae-state.pt", 0
    if state_path.exists():
        state = load_state(state_path, asdict(config))
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        nimg = state["nimg"]

    progress = tqdm(total=config.total_nimg, initial=nimg, unit="img", desc="vae", mininterval=1)
    last_save = time.monotonic()
    while nimg < config.total_nimg:
        index = shuffled_indices(config.seed, len(images), nimg, config.batch_size)
        x = to_unit(images[index.numpy()])
        noise = stream_at(config.seed, "posterior", nimg)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, nimg)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            posterior = vae.encode(x).latent_dist
            x_hat = vae.decode(posterior.sample(noise)).sample
        reconstruction = (x_hat.float() - x).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction + config.kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0))
        if not math.isfinite(norm):
            raise TrainingDiverged(
                f"The VAE's gradient is not finite after {nimg:,} images (loss {loss.item()}).",
                hint=f"{state_path} holds the last good state, if any; lower --lr",
            )
        optimizer.step()
        nimg += config.batch_size
        progress.update(config.batch_size)
        if progress.n % (config.batch_size * 10) == 0:
            progress.set_postfix(l1=f"{reconstruction.item():.4f}", kl=f"{kl.item():.3f}")
        if time.monotonic() - last_save > state_seconds:
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "nimg": nimg}
            save_state(state_path, state | {"config": asdict(config)})
            last_save = time.monotonic()
    progress.close()
    return vae


def build_parser() -> argparse.ArgumentParser:
    defaults = VaeTraining()
    parser = argparse.ArgumentParser(
        prog="python -m training.train_vae",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained VAE")
    parser.add_argument("--run", type=Path, help="folder of the resumable state (default: OUT.run)")
    parser.add_argument(
        "--from",
        dest="initial",
        type=Path,
        help="start from this VAE's weights (or a checkpoint's)",
    )
    parser.add_argument("--widths", type=int, nargs="+", default=defaults.widths)
    parser.add_argument("--latent-channels", type=int, default=defaults.latent_channels)
    parser.add_argument("--kl-weight", type=float, default=defaults.kl_weight)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--total-nimg", type=int, default=defaults.total_nimg)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--no-bf16", action="store_true", help="train in float32 (quicker on a CPU without bf16)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: make_vae(arguments), extra="train")


def make_vae(arguments: argparse.Namespace) -> dict[str, object]:
    """Train, measure and write the VAE that the arguments describe; return what to report."""
    import torch

    from cat_serve.model.checkpoint import open_vae
    from cat_serve.model.vae import vae_sha256

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    initial = open_vae(arguments.initial) if arguments.initial else None
    run = arguments.run or arguments.out.with_name(arguments.out.name + ".run")
    started = time.monotonic()
    folder = None if arguments.images is None else open_folder(arguments)
    config = VaeTraining(
        widths=tuple(arguments.widths),
        latent_channels=arguments.latent_channels,
        kl_weight=arguments.kl_weight,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        total_nimg=arguments.total_nimg,
        bf16=not arguments.no_bf16,
        seed=arguments.seed,
        initial=vae_sha256(initial) if initial else None,
        data=f"{folder.description['listing']} at {folder.size_px} px" if folder else None,
    )
    capabilities = torch.cpu.get_capabilities()
    if config.bf16 and not any(capabilities.get(name) for name in BF16_INSTRUCTIONS):
        print(f"warning: {SLOW_BF16}", file=sys.stderr)
    images, test_images = load_photographs(arguments, folder, run, config)
    vae = train(config, images, run, initial=initial).eval()
    mean, std = measure_latents(vae, images[:MEASURED])
    vae.register_to_config(latents_mean=mean, latents_std=std)
    psnr = psnr_db(test_images, reconstruct(vae, test_images))
    save_vae(vae, arguments.out)
    return {
        "out": str(arguments.out), "latents_mean": mean, "latents_std": std, "test_psnr_db": psnr,
        "nimg": config.total_nimg, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def load_photographs(
    arguments: argparse.Namespace, folder: Source | None, run: Path, config: VaeTraining
) -> tuple[np.ndarray, np.ndarray]:
    """Return the photographs to train on and those to measure on, uint8 [N, H, W, 3].

    Those of a folder are decoded once, into `run`; a twentieth is measured on and never trained on.

    Raises:
        InvalidInput: photographs of this side cannot be halved as often as the VAE does it.
    """
    from cat_serve.errors import InvalidInput
    from training.decoded import decode_all, hold_out
    from training.fashion_mnist import DEFAULT_FOLDER, load_split, to_rgb32

    if folder is None:
        data = arguments.data or DEFAULT_FOLDER
        return to_rgb32(load_split("train", data)[0]), to_rgb32(load_split("test", data)[0])
    if folder.size_px % (cells := 2 ** (len(config.widths) - 1)):
        raise InvalidInput(
            f"A VAE with {len(config.widths)} widths halves {len(config.widths) - 1} times: "
            f"--size {folder.size_px} does not divide by {cells}.",
            hint="give another --size, or fewer --widths",
        )
    try:
        return hold_out(decode_all(folder, run, arguments.max_broken))
    finally:
        folder.close()


if __name__ == "__main__":
    sys.exit(main())
