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
    initial: str | None = None  # hash of the VAE whose weights it starts from


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


def to_unit(images: np.ndarray) -> Tensor:
    """Map uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def measure_latents(
    vae: AutoencoderKL, images: np.ndarray, batch_size: int = 250
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of every channel of sampled latents."""
    import torch
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(0)
    parts = []
    with torch.no_grad():
        for start in tqdm(range(0, len(images), batch_size), desc="latents", unit="batch"):
            x = to_unit(images[start : start + batch_size])
            parts.append(vae.encode(x).latent_dist.sample(generator))
    std, mean = torch.std_mean(torch.cat(parts).double(), dim=(0, 2, 3), correction=0)
    return mean.tolist(), std.tolist()


def reconstruct(vae: AutoencoderKL, images: np.ndarray, batch_size: int = 250) -> np.ndarray:
    """Encode uint8 [N, H, W, 3] to the posterior's mean and decode again, to uint8."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from cat_serve.model.decoder import to_uint8

    parts = []
    with torch.no_grad():
        for start in tqdm(range(0, len(images), batch_size), desc="reconstruct", unit="batch"):
            posterior = vae.encode(to_unit(images[start : start + batch_size])).latent_dist
            parts.append(to_uint8(vae.decode(posterior.mode()).sample).numpy())
    return np.concatenate(parts)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Return the PSNR of two sets of uint8 images, over all pixels."""
    import numpy as np

    return float(10 * np.log10(255**2 / np.square(a.astype(np.float32) - b).mean(dtype=np.float64)))


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
    parser.add_argument(
        "--from", dest="initial", type=Path, help="start from this VAE's weights (or a checkpoint's)"
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
    from cat_serve.model.decoder import vae_sha256
    from training.fashion_mnist import load_split, to_rgb32

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    initial = open_vae(arguments.initial) if arguments.initial else None
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
    )
    run = arguments.run or arguments.out.with_name(arguments.out.name + ".run")
    started = time.monotonic()
    images = to_rgb32(load_split("train", arguments.data)[0])
    test_images = to_rgb32(load_split("test", arguments.data)[0])  # missing? better known now
    vae = train(config, images, run, initial=initial).eval()
    mean, std = measure_latents(vae, images[:10_000])
    vae.register_to_config(latents_mean=mean, latents_std=std)
    psnr = psnr_db(test_images, reconstruct(vae, test_images))
    save_vae(vae, arguments.out)
    return {
        "out": str(arguments.out), "latents_mean": mean, "latents_std": std, "test_psnr_db": psnr,
        "nimg": config.total_nimg, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
