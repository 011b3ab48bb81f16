"""What the server answered, with types."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from cat_serve.files import written_whole
from cat_serve.images import MEDIA_TYPES

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PillowImage

Determinism = Literal["bytes", "latent"]


@dataclass(frozen=True)
class Timings:
    """Milliseconds that the request spent in the server: waiting, in the engine, in the encoder."""

    queue_ms: float
    generate_ms: float
    encode_ms: float


@dataclass(frozen=True)
class Image:
    """One image as a file.

    Attributes:
        data: the file's bytes, of `media_type`.
        seed: its own; None if it was made from an explicit z.
    """

    data: bytes = field(repr=False)
    media_type: str
    seed: int | None

    def array(self) -> np.ndarray:
        """Return the pixels, uint8 [H, W, 3]; those of a JPEG are not quite the generator's."""
        import numpy as np

        if self.media_type == MEDIA_TYPES["npy"]:
            pixels: np.ndarray = np.load(io.BytesIO(self.data), allow_pickle=False)
            return pixels
        return np.asarray(self.pil().convert("RGB"))

    def pil(self) -> PillowImage:
        """Return it as a Pillow image; `cat_serve.images.read_parameters(data)` tells how it was made."""
        from PIL import Image as pillow

        if self.media_type == MEDIA_TYPES["npy"]:
            return pillow.fromarray(self.array())
        image = pillow.open(io.BytesIO(self.data))
        image.load()
        return image

    def save(self, path: str | Path) -> None:
        """Write the file as it came, in one step."""
        _save(self.data, path)


def _save(data: bytes, path: str | Path) -> None:
    with written_whole(Path(path)) as temporary:
        temporary.write_bytes(data)


@dataclass(frozen=True)
class Images(Sequence[Image]):
    """The images of one request, in the order of their seeds.

    Attributes:
        model, version: what made them.
        class_text: the class as the server understood it: its index, or a mixture `7:0.7,9:0.3`.
        determinism: what is promised of the bytes.
        timings: where the time went in the server.
        request_id: the request's id, as in the server's log.
        attempts: how often the server was asked.
    """

    images: tuple[Image, ...]
    model: str
    version: str
    class_text: str
    determinism: Determinism
    timings: Timings
    request_id: str
    attempts: int

    @property
    def class_id(self) -> int | None:
        """The class index; None for a mixture."""
        return int(self.class_text) if self.class_text.isdigit() else None

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(image.seed for image in self.images)

    def array(self) -> np.ndarray:
        """Return the pixels of all, uint8 [n, H, W, 3]."""
        import numpy as np

        return np.stack([image.array() for image in self.images])

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        return self.images[index]

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Animation:
    """The frames of a path as one file.

    Attributes:
        data: the file's bytes, of `media_type`: an animated WebP or GIF, or a zip of PNGs.
        frames: how many there are.
        class_texts, seeds: of every key frame.
        model, version, determinism, timings, request_id, attempts: see `Images`.
    """

    data: bytes = field(repr=False)
    media_type: str
    frames: int
    class_texts: tuple[str, ...]
    seeds: tuple[int, ...]
    model: str
    version: str
    determinism: Determinism
    timings: Timings
    request_id: str
    attempts: int

    def save(self, path: str | Path) -> None:
        """Write the file as it came, in one step."""
        _save(self.data, path)


@dataclass(frozen=True)
class ModelClasses:
    """The classes of one model; their index is their place in `names`."""

    model: str
    version: str
    default: bool
    names: tuple[str, ...]


@dataclass(frozen=True)
class ModelCard:
    """What the server says of a model; `card` has all of it.

    Attributes:
        image_size: (height, width) in px.
        backend, precision: of what computes it; None while it is not loaded yet.
        max_images_per_request: the largest `n`.
    """

    name: str
    version: str
    default: bool
    num_classes: int
    image_size: tuple[int, int]
    backend: str | None
    precision: str | None
    determinism: Determinism
    max_images_per_request: int
    card: Mapping[str, Any] = field(repr=False)
