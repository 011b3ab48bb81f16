"""The forms of one model that can be compared, each opened by its name: checkpoint, export, engine, server.

Another engine is one more `Kind`: how its names look, and what opens one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cat_serve.contract import Precision
from cat_serve.errors import InvalidInput
from cat_serve.manifest import GRAPH_NAMES
from export.forms import engine, files, http, triton
from export.forms.base import Kind

if TYPE_CHECKING:
    from export.forms.base import Form

CHECKPOINT_SUFFIX = ".safetensors"

KINDS = (
    Kind(
        "http://HOST:PORT[?model=NAME]",
        lambda n: n.startswith(("http://", "https://")),
        http.open_server,
    ),
    Kind(
        f"{triton.SCHEME}HOST:PORT/MODEL", lambda n: n.startswith(triton.SCHEME), triton.open_model
    ),
    Kind(
        "CHECKPOINT.safetensors",
        lambda n: n.endswith(CHECKPOINT_SUFFIX),
        files.open_checkpoint,
    ),
    Kind(
        f"VERSION_FOLDER/({'|'.join(GRAPH_NAMES.values())})",
        lambda n: Path(n).name in GRAPH_NAMES.values(),
        files.open_graph,
    ),
    Kind("ENGINE (of export.trt)", engine.is_engine, engine.open_engine),
    Kind("VERSION_FOLDER", lambda n: Path(n).is_dir(), files.open_folder),
)


def open_form(name: str, precision: Precision = "fp32") -> Form:
    """Open whatever `name` names.

    Args:
        precision: of an export's folder, which graph; of a cat-serve that does not tell, what it was started with.

    Raises:
        InvalidInput: it names nothing that can be compared.
        CatServeError: what it names is damaged, or does not answer.
    """
    for kind in KINDS:
        if kind.fits(name):
            return kind.open(name, precision)
    raise InvalidInput(
        f"{name!r} is nothing that can be compared.",
        hint=f"what can: {', '.join(kind.shown for kind in KINDS)}",
    )
