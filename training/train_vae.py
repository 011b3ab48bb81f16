"""Train the small VAE whose latents the generator works in (diffusers' AutoencoderKL).

    python -m training.train_vae --out checkpoints/fashion-32.vae

The loss is mean |x - x_hat| + kl_weight * mean KL(q(latent | x) || N(0, 1)), both means over elements.
The scaling factor 1/std of the latents is measured on the training photographs and stored in the
config, as diffusers expects it. Interrupted runs resume from --run.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL
    from torch import Tensor


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


def learning_rate(config: VaeTraining, nimg: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(1.0, (nimg + config.batch_size) / config.warmup_nimg)
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * nimg / config.total_nimg))


def train(
    config: VaeTraining, images: np.ndarray, run: Path, state_seconds: float = 60.0
) -> AutoencoderKL:
    """Train on uint8 [N, H, W, 3] photographs; keep the state in `run` so that it can be resumed."""
    import torch
    from tqdm import tqdm

    from cat_serve.errors import TrainingDiverged
    from training.state import load_state, save_state
    from training.streams import shuffled_indices, stream_at

    torch.manual_seed(config.seed)
    vae = build_vae(config, images.shape[1])
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


def to_unit(images: np.ndarray) -> Tensor:
    """Map uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def measure(vae: AutoencoderKL, images: np.ndarray, batch_size: int = 250) -> tuple[float, float]:
    """Return the standard deviation of sampled latents and the reconstruction PSNR in dB."""
    import torch
    from tqdm import tqdm

    total = total_square = squared_error = 0.0
    count = pixels = 0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for start in tqdm(range(0, len(images), batch_size), desc="measure", unit="batch"):
            x = to_unit(images[start : start + batch_size])
            posterior = vae.encode(x).latent_dist
            latents = posterior.sample(generator).double()
            total += latents.sum().item()
            total_square += latents.square().sum().item()
            count += latents.numel()
            squared_error += (vae.decode(posterior.mode()).sample - x).square().sum().item()
            pixels += x.numel()
    std = math.sqrt(total_square / count - (total / count) ** 2)
    return std, 10 * math.log10(4.0 / (squared_error / pixels))


def save_vae(vae: AutoencoderKL, out: Path) -> None:
    """Write diffusers' folder (config.json and safetensors) beside its final name, then rename it."""
    import shutil

    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    vae.save_pretrained(temporary)
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)


def build_parser() -> argparse.ArgumentParser:
    from training.fashion_mnist import DEFAULT_FOLDER

    defaults = VaeTraining()
    parser = argparse.ArgumentParser(
        prog="python -m training.train_vae",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="Fashion-MNIST folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained VAE")
    parser.add_argument("--run", type=Path, help="folder of the resumable state (default: OUT.run)")
    parser.add_argument("--widths", type=int, nargs="+", default=defaults.widths)
    parser.add_argument("--latent-channels", type=int, default=defaults.latent_channels)
    parser.add_argument("--kl-weight", type=float, default=defaults.kl_weight)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--total-nimg", type=int, default=defaults.total_nimg)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--no-bf16", action="store_true", help="train in float32")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: make_vae(arguments), extra="train")


def make_vae(arguments: argparse.Namespace) -> dict[str, object]:
    """Train, measure and write the VAE that the arguments describe; return what to report."""
    from training.fashion_mnist import load_split, to_rgb32

    config = VaeTraining(
        widths=tuple(arguments.widths),
        latent_channels=arguments.latent_channels,
        kl_weight=arguments.kl_weight,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        total_nimg=arguments.total_nimg,
        bf16=not arguments.no_bf16,
        seed=arguments.seed,
    )
    run = arguments.run or arguments.out.with_name(arguments.out.name + ".run")
    started = time.monotonic()
    images = to_rgb32(load_split("train", arguments.data)[0])
    test_images = to_rgb32(load_split("test", arguments.data)[0])  # missing? better known now
    vae = train(config, images, run).eval()
    std, _ = measure(vae, images[:10_000])
    vae.register_to_config(scaling_factor=1 / std)
    _, psnr_db = measure(vae, test_images)
    save_vae(vae, arguments.out)
    return {
        "out": str(arguments.out), "scaling_factor": 1 / std, "test_psnr_db": psnr_db,
        "nimg": config.total_nimg, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
