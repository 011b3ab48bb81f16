"""What a run says while it runs: log.jsonl, and TensorBoard beside it where it is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from cat_serve.errors import MissingDependency
from cat_serve.files import write_text

LOG_NAME = "log.jsonl"
BOARD_NAME = "tensorboard"


class RunLog:
    """The log of one run, from `nimg` images on; a context manager.

    Lines that an interrupted run wrote beyond `nimg` are dropped. For TensorBoard they are marked as void
    (`purge_step`), and it leaves them out.

    Raises:
        MissingDependency: TensorBoard is wanted and its package is not here.
    """

    def __init__(self, folder: Path, nimg: int, tensorboard: bool = False) -> None:
        self.path = folder / LOG_NAME
        self._drop_lines_after(nimg)
        self._board = None
        if tensorboard:
            self._board = summary_writer()(str(folder / BOARD_NAME), purge_step=nimg + 1)

    def _drop_lines_after(self, nimg: int) -> None:
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            whole = [line for line in lines if line.endswith("}")]  # the last may be cut off
            kept = [line for line in whole if json.loads(line)["nimg"] <= nimg]
            write_text(self.path, "".join(line + "\n" for line in kept))

    def numbers(self, nimg: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add one line, and one point to the curve of every value."""
        line = {"nimg": nimg, "seconds": round(seconds, 1)}
        line |= {key: float(f"{value:.5g}") for key, value in values.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._board:
            for key, value in values.items():
                self._board.add_scalar(key, value, nimg)

    def pictures(self, nimg: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show uint8 [H, W, 3] pictures on TensorBoard."""
        if self._board:
            for key, picture in pictures.items():
                self._board.add_image(key, picture, nimg, dataformats="HWC")
            self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()


def summary_writer() -> Any:
    """Return torch's SummaryWriter.

    Raises:
        MissingDependency: the package tensorboard is not here.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependency(
            "TensorBoard's package is not here.", hint="pip install 'cat-serve[train]'"
        ) from error
    return SummaryWriter
