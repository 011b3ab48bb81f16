"""The training loop. Everything is counted in images; every random draw is addressed by (seed, nimg)."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cat_serve.errors import DataError, InvalidInput, TrainingDiverged
from cat_serve.model.checkpoint import Checkpoint, open_vae, save_checkpoint, save_module
from cat_serve.model.generator import Generator
from cat_serve.model.vae import vae_sha256
from training.config import TrainConfig
from training.data import Latents
from training.discriminator import Discriminator
from training.ema import ema_decay, update_ema
from training.engine import Engine
from training.initial import Initial
from training.loader import AHEAD, Loader
from training.objective import Objective, frozen
from training.photographs import open_photographs
from training.preview import save_previews
from training.representation import open_alignment
from training.runlog import RunLog, summary_writer
from training.state import load_state, moments, restore_moments, save_state
from training.streams import stream_at

CLIP_NORM = 1.0
BETAS = (0.0, 0.99)
ADAM_EPS = 1e-8


class Run:
    """One training run in one folder: `state.pt`, `log.jsonl`, previews and the checkpoints.

    Args:
        folder: made if it is not there; an unfinished run in it goes on.
        vae_path: the VAE that encoded `data` (a folder or a checkpoint); it travels inside the checkpoint.
        photographs: where the data set's files are, for a teacher.
        teacher_weights: a local folder of the teacher's weights.
        initial: where the weights start, unless the folder has a state; by default they are drawn.
        tensorboard: write numbers and pictures for TensorBoard too.
        engine: where it computes, and with which other processes; by default alone, in float32.

    Raises:
        DataError: the data do not fit the configuration, or were encoded by another VAE.
        CheckpointError: the folder's state belongs to another run, or `initial` does not fit.
        MissingDependency: TensorBoard is wanted and not here.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Latents,
        vae_path: Path,
        folder: Path,
        photographs: Path | None = None,
        teacher_weights: Path | None = None,
        initial: Path | None = None,
        tensorboard: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.engine = engine or Engine()
        self.share = self.engine.share(config.batch_size)
        _require_fit(config, data)
        self.tensorboard = tensorboard
        if tensorboard:
            summary_writer()  # missing? better known now
        self.initial = self._open_initial(initial) if initial else None
        self.vae = open_vae(vae_path)
        if vae_sha256(self.vae) != data.index.vae_sha256:
            raise DataError(
                f"The data were encoded by another VAE than {vae_path}.",
                hint="run python -m training.prepare with this VAE",
            )
        torch.manual_seed(config.seed)
        self.generator = Generator(config.generator)
        self.discriminator = Discriminator(config.discriminator)
        resumed = self.state_path.exists()
        if self.initial and not resumed:
            self.initial.fill(self.generator, self.discriminator, data.index.class_names)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        width = config.discriminator.width
        self.alignment = open_alignment(
            config.representation, width, teacher_weights, str(self.engine.device)
        )
        self.photographs = open_photographs(data, photographs) if self.alignment else None
        on_gpu = self.engine.device.type == "cuda"  # the CPU would only wait for itself
        self.loader = Loader(
            data, config.seed, config.batch_size, self.share.rows, self.photographs,
            ahead=AHEAD if on_gpu else 0, pin=on_gpu,
        )  # fmt: skip
        self.critic = nn.ModuleDict({"discriminator": self.discriminator})  # what D's step trains
        if self.alignment:
            self.critic["projector"] = self.alignment.projector
        self.engine.prepare(self.generator, self.discriminator)
        for module in (self.critic, self.ema, self.vae):
            module.to(self.engine.device)
        self.objective = Objective(
            self.generator, self.discriminator, config, self.alignment,
            self.engine.runtime.precision == "bf16", self.engine.whole,
        )  # fmt: skip
        self.generator_optimizer = self._optimizer(self.generator, config.generator.width)
        self.discriminator_optimizer = self._optimizer(self.critic, width)
        self.nimg = 0
        self.seconds = 0.0
        if resumed:
            self._restore(load_state(self.state_path, self._identity(), self._complete))
        self.engine.start_equal((self.generator, self.critic, self.ema), self.nimg)
        folder.mkdir(parents=True, exist_ok=True)

    def _open_initial(self, path: Path) -> Initial:
        if path.resolve() == self.checkpoint_path.resolve():
            raise InvalidInput(
                f"The run would write over {path}, which it starts from.",
                hint="give another --run or --name",
            )
        return Initial.load(path)

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / f"{self.config.name}.safetensors"

    def _optimizer(self, module: nn.Module, width: int) -> torch.optim.Optimizer:
        lr = self.config.lr(width)
        return torch.optim.AdamW(
            module.parameters(), lr=lr, betas=BETAS, eps=ADAM_EPS, weight_decay=0.0
        )

    # --- one step --------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """Take one D step, then one G step, on the same real batch. Returns plain numbers for the log.

        Every process takes its share of the batch; gradients, `w_avg` and the numbers are the whole batch's.
        """
        config, position, share = self.config, self.nimg, self.share
        x_real, y, photographs = self._batch()
        d_losses = self.objective.discriminator_step(
            x_real, y, stream_at(config.seed, "d", position), position, photographs, share
        )
        self._set_learning_rates()
        d_norm = self._descend(d_losses["d_total"], self.critic, self.discriminator_optimizer)
        with frozen(self.discriminator):
            g_losses = self.objective.generator_step(
                x_real, y, stream_at(config.seed, "g", position), share
            )
            g_norm = self._descend(g_losses["g_total"], self.generator, self.generator_optimizer)

        self.nimg += config.batch_size
        update_ema(self.ema, self.generator, ema_decay(self.nimg, config.batch_size))
        numbers = self.engine.sum_numbers(d_losses | g_losses)
        return numbers | {"d_norm": d_norm, "g_norm": g_norm}

    def _batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return this process's share of the next batch: latents, labels, photographs for a teacher."""
        batch, device = self.loader.at(self.nimg), self.engine.device
        x_real = batch.x_real.to(device, self.generator.w_avg.dtype, non_blocking=True)
        photographs = batch.photographs
        if photographs is not None:
            photographs = photographs.to(device, non_blocking=True)
        return x_real, batch.y.to(device, non_blocking=True), photographs

    def _set_learning_rates(self) -> None:
        config, factor = self.config, self.config.lr_factor(self.nimg)
        for optimizer, width in (
            (self.generator_optimizer, config.generator.width),
            (self.discriminator_optimizer, config.discriminator.width),
        ):
            for group in optimizer.param_groups:
                group["lr"] = config.lr(width) * factor

    def _descend(self, loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        """Backpropagate, clip and step; a loss or a gradient that is not finite ends the run."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.engine.sum_gradients(module.parameters())
        norm = float(nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM))
        if not math.isfinite(norm):
            who = "generator" if module is self.generator else "discriminator"
            raise TrainingDiverged(
                f"The {who}'s gradient is not finite after {self.nimg:,} images "
                f"(loss {float(loss.detach())}).",
                hint=f"{self.state_path} holds the last good state; lower the learning rate or raise gamma",
            )
        optimizer.step()
        return norm

    # --- the whole run ---------------------------------------------------------------------------

    def train(self, snapshot_nimg: int, log_nimg: int, state_seconds: float = 120.0) -> None:
        """Train to `total_nimg`; log, save the state and show pictures on the way."""
        if min(snapshot_nimg, log_nimg) < 1:
            raise InvalidInput(
                f"Snapshots every {snapshot_nimg} images and log lines every {log_nimg}: "
                "both must be at least 1."
            )
        total = self.config.total_nimg
        if self.engine.is_main and self.nimg >= total and not self.checkpoint_path.exists():
            self.save_checkpoints()  # its state alone was brought here
        sums: dict[str, float] = defaultdict(float)
        steps, mark_nimg, mark = 0, self.nimg, time.monotonic()
        last_state = mark
        with (
            self._log() as log,
            self.loader,
            tqdm(
                total=total,
                initial=self.nimg,
                unit="img",
                desc=self.config.name,
                disable=not self.engine.is_main,
            ) as progress,
        ):
            while self.nimg < total:
                for key, value in self.step().items():
                    sums[key] += value
                steps += 1
                progress.update(self.config.batch_size)
                now = time.monotonic()
                finished = self.nimg >= total
                if self._passed(log_nimg) or finished:
                    self.seconds += now - mark
                    rate = (self.nimg - mark_nimg) / max(now - mark, 1e-9)
                    means = {key: value / steps for key, value in sums.items()}
                    if log:
                        log.numbers(self.nimg, self.seconds, means | {"images_per_second": rate})
                    progress.set_postfix(
                        {k: f"{means[k]:.3f}" for k in ("d_adv", "g_adv", "margin", "consistency")}
                    )
                    sums.clear()
                    steps, mark_nimg, mark = 0, self.nimg, now
                if log and (self._passed(snapshot_nimg) or finished):
                    self.save_checkpoints()
                    pictures = save_previews(self.ema, self.vae, self.folder, self.nimg)
                    log.pictures(self.nimg, pictures)
                # Last of all, and where the log's sums are empty: what the state has passed is written.
                # The others go on to the next exchange, and wait there.
                if log and (finished or (not steps and now - last_state > state_seconds)):
                    self.save_state()
                    last_state = now

    def _log(self) -> AbstractContextManager[RunLog | None]:
        """Open the log; only the first process has one, and writes files."""
        if not self.engine.is_main:
            return nullcontext()
        return RunLog(self.folder, self.nimg, self.tensorboard)

    def _passed(self, every_nimg: int) -> bool:
        return self.nimg // every_nimg > (self.nimg - self.config.batch_size) // every_nimg

    # --- files -----------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a state to be resumed; the length of the run may change."""
        config = self.config.to_dict()
        del config["total_nimg"]
        started = self.initial.identity if self.initial else None
        return config | {"data": self.data.index.fingerprint, "initial": started}

    def _complete(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Give a saved identity the settings that did not exist when it was written."""
        parts = {key: saved.get(key) for key in ("data", "initial")}
        config = {key: value for key, value in saved.items() if key not in parts}
        whole = TrainConfig.from_dict(config | {"total_nimg": self.config.total_nimg}).to_dict()
        del whole["total_nimg"]
        return whole | parts

    def save_state(self) -> None:
        """Write all that the next step depends on. With beta1 = 0, `exp_avg` is the last gradient: not kept."""
        save_state(self.state_path, {
            "config": self._identity(),
            "nimg": self.nimg,
            "seconds": self.seconds,
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "ema": self.ema.state_dict(),
            "generator_optimizer": moments(self.generator_optimizer),
            "discriminator_optimizer": moments(self.discriminator_optimizer),
        })  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.nimg, self.seconds = state["nimg"], state["seconds"]
        for name in ("generator", "critic", "ema"):
            getattr(self, name).load_state_dict(state[name])
        restore_moments(self.generator_optimizer, state["generator_optimizer"])
        restore_moments(self.discriminator_optimizer, state["discriminator_optimizer"])

    def save_checkpoints(self) -> None:
        """Write the served checkpoint (averaged weights) and, apart from it, the discriminator."""
        name, index = self.config.name, self.data.index
        training = {
            "config": self.config.to_dict(),
            "nimg": self.nimg,
            "seconds": round(self.seconds, 1),
            "data": {k: v for k, v in index.images.items() if k not in ("root", "listing")}
            | {"fingerprint": index.fingerprint, "count": index.count},
            "runtime": self.engine.description(),
        }
        if self.initial:
            training["initial"] = self.initial.identity
        checkpoint = Checkpoint(name, self.ema, self.vae, index.class_names, training)
        save_checkpoint(self.checkpoint_path, checkpoint)
        description = {"discriminator": self.config.discriminator.to_dict(), "nimg": self.nimg}
        save_module(
            self.folder / f"{name}.discriminator.safetensors", self.discriminator, description
        )


def _require_fit(config: TrainConfig, data: Latents) -> None:
    """Refuse data of other classes or of another latent grid than the configuration's."""
    index, g = data.index, config.generator
    got = (len(index.class_names), index.latent_channels, index.latent_size)
    wanted = (g.num_classes, g.latent_channels, g.latent_size)
    if got != wanted:
        raise DataError(
            f"The data have (classes, channels, grid) {got}, {config.name} wants {wanted}.",
            hint="prepare the data that the preset is made for, or take another preset",
        )
