"""Where a run computes, and with whom: one device, or several processes that act as one.

Accelerate finds the processes that `accelerate launch` or `torchrun` started and the device of each. Gradients
are summed here rather than by DistributedDataParallel: both networks are used in parts (mapping, trunk, logits)
that its hooks on `forward` do not see, and the sum of the shares of a global mean needs no division.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cat_serve.errors import CheckpointError, InvalidInput, ProcessLost
from cat_serve.model.generator import Generator
from training.discriminator import Discriminator
from training.share import Share

Precision = Literal["float32", "bf16"]
BUCKET_VALUES = 32 * 2**20  # 128 MB in float32: what is sent at once


@dataclass(frozen=True)
class Runtime:
    """How a run computes. None of it decides what a run is: a resumed run may have others.

    Attributes:
        precision: bf16 runs the trunks under autocast; mapping, logits, losses and penalties stay float32.
        checkpointing: compute a block's activations again in the backward pass rather than keep them.
        compile: compile the blocks of both networks with torch.compile.
        cpu: stay on the CPU where there is a GPU.
        timeout_minutes: how long a process waits for the others.
    """

    precision: Precision = "float32"
    checkpointing: bool = False
    compile: bool = False
    cpu: bool = False
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise InvalidInput(
                f"precision {self.precision!r} is unknown.",
                hint=f"one of {', '.join(get_args(Precision))}",
            )
        if self.timeout_minutes <= 0:
            raise InvalidInput(f"timeout_minutes {self.timeout_minutes} must be positive.")


class Engine:
    """The device of this process and its ties to the others. Alone, every exchange is the identity."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        from accelerate import PartialState

        self.runtime = runtime or Runtime()
        alone_on_cpu = self.runtime.cpu or not torch.cuda.is_available()
        timeout = timedelta(minutes=self.runtime.timeout_minutes)
        with _together():
            self._state = PartialState(cpu=alone_on_cpu, timeout=timeout)
        self.device: torch.device = self._state.device
        self.rank: int = self._state.process_index
        self.processes: int = self._state.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Return this process's share of a batch."""
        return Share.of(self.rank, self.processes, total)

    def prepare(self, *networks: Generator | Discriminator) -> None:
        """Move networks here, with checkpointing and compiled blocks where they are wanted."""
        for network in networks:
            network.to(self.device)
            network.checkpointing = self.runtime.checkpointing
            if self.runtime.compile:
                for block in network.blocks:
                    block.compile()

    def start_equal(self, networks: Iterable[nn.Module], nimg: int) -> None:
        """Give every process the weights of the first.

        Raises:
            CheckpointError: they have resumed at different points.
        """
        if self.processes == 1:
            return
        with _together():
            reached = torch.tensor([nimg, -nimg], device=self.device)
            torch.distributed.all_reduce(reached, op=torch.distributed.ReduceOp.MAX)
        highest, lowest = int(reached[0]), -int(reached[1])
        if highest != lowest:
            raise CheckpointError(
                f"The processes resume at different points: {lowest:,} and {highest:,} images.",
                hint="every process must see the same run folder",
            )
        tensors = [t for network in networks for t in network.state_dict().values()]
        with _together():
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place; afterwards they are equal everywhere."""
        if self.processes == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            _all_reduce(flat)
            summed = flat.split([gradient.numel() for gradient in bucket])
            for gradient, values in zip(bucket, summed, strict=True):
                gradient.copy_(values.view_as(gradient))

    def sum_numbers(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Add up scalars over all processes; returns plain numbers."""
        if self.processes == 1:
            return {key: float(value.detach()) for key, value in values.items()}
        stacked = torch.stack([value.detach().double() for value in values.values()])
        _all_reduce(stacked)
        return dict(zip(values, stacked.tolist(), strict=True))

    def whole(self, rows: Tensor, share: Share) -> Tensor:
        """Put the shares of all processes together, exactly: [share, ...] -> [total, ...]."""
        if self.processes == 1:
            return rows
        together = rows.new_zeros(share.total, *rows.shape[1:])
        together[share.rows] = rows.detach()
        _all_reduce(together)  # x + 0 is x
        return together

    def wait(self) -> None:
        """Wait until every process is here."""
        with _together():
            self._state.wait_for_everyone()

    def close(self) -> None:
        """Leave the other processes in order, after the last exchange."""
        if self.processes > 1:
            self.wait()
            self._state.destroy_process_group()

    def description(self) -> dict[str, Any]:
        """Say how the run computes, for the checkpoint."""
        from accelerate import __version__

        known = asdict(self.runtime)
        known = {key: known[key] for key in ("precision", "checkpointing", "compile")}
        versions = {"torch": torch.__version__, "accelerate": __version__}
        return known | {"device": self.device.type, "processes": self.processes} | versions


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cut a list of gradients where a bucket is full."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.numel() for g in bucket) >= BUCKET_VALUES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _all_reduce(tensor: Tensor) -> None:
    with _together():
        torch.distributed.all_reduce(tensor)


@contextmanager
def _together() -> Iterator[None]:
    """Say in one sentence that another process is gone.

    Raises:
        ProcessLost: an exchange broke off, or took longer than the time-out.
    """
    try:
        yield
    except RuntimeError as error:  # torch's DistError, and what gloo throws
        raise ProcessLost(
            f"The other processes of this run do not answer: {str(error).splitlines()[0]}",
            hint="look at what the first process that failed printed; the same command goes on from the last state",
        ) from error
