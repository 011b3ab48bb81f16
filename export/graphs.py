"""The ONNX graphs of one checkpoint: which there are, how each is traced, and how it is run to be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cat_serve.contract import OUTPUT_NAMES, STUDIO_OUTPUT_NAMES, Precision, StudioBatch
from cat_serve.manifest import GRAPH_NAMES, STUDIO_NAME

if TYPE_CHECKING:
    from cat_serve.contract import Batch
    from cat_serve.model.checkpoint import Checkpoint
    from cat_serve.model.fused import FusedModel, StudioModel
    from export.probes import Engine

OPSET = 20
# Only the tracer hears of this limit; the graph has none. Decoders branch in Python at 64 images (to lay memory
# out anew, nothing that a graph has), and the studio decodes up to four for each row.
TRACED_BATCH = 15
EXTERNAL_DATA_SUFFIX = ".data"  # of the weights' file, where they are not in the graph's


@dataclass(frozen=True)
class Graph:
    """One graph of an export.

    Attributes:
        precision: of trunk and heads.
        decoder_precision: of the VAE decoder.
    """

    name: str
    precision: Precision
    decoder_precision: Precision

    @property
    def is_studio(self) -> bool:
        return self.name == STUDIO_NAME

    def build(self, checkpoint: Checkpoint) -> FusedModel | StudioModel:
        """Return the module that is traced."""
        from cat_serve.model.fused import FusedModel, StudioModel

        form = StudioModel if self.is_studio else FusedModel
        return form.from_checkpoint(checkpoint, self.precision, self.decoder_precision)

    def files(self, folder: Path) -> list[Path]:
        """Return the graph's file, and that of its weights if they are apart."""
        return files_of(folder / self.name)


def files_of(path: Path) -> list[Path]:
    """Return a graph's file, and that of its weights if they are apart."""
    apart = path.with_name(path.name + EXTERNAL_DATA_SUFFIX)
    return [path, apart] if apart.exists() else [path]


def plan(
    precisions: Sequence[Precision], decoder: Precision, studio: Precision | None
) -> list[Graph]:
    """Return the graphs to export, the most exact first.

    Args:
        decoder: precision of the decoder in fp16 graphs; fp32 graphs are fp32 throughout.
        studio: precision of the studio graph, or None for no such graph.
    """
    names = [(GRAPH_NAMES[p], p) for p in GRAPH_NAMES if p in precisions]
    if studio is not None:
        names.append((STUDIO_NAME, studio))
    return [Graph(name, p, decoder if p == "fp16" else "fp32") for name, p in names]


def studio_precision(
    checkpoint: Checkpoint, wanted: Precision | Literal["auto"] | None
) -> Precision | None:
    """Return the precision of the studio graph, None where there will be none.

    Args:
        wanted: "auto" is fp16 where the generator has stages.

    Raises:
        InvalidInput: one is asked for, and the generator has neither stages nor class embeddings to mix.
    """
    from cat_serve.errors import InvalidInput

    stages = checkpoint.generator.config.stages
    if wanted == "auto":
        return "fp16" if stages else None
    if wanted is not None and not stages:
        raise InvalidInput(
            f"{checkpoint.name} has no stages, so there is no studio of it.",
            hint="leave --studio-precision away, or give none",
        )
    return wanted


def write_graph(
    model: FusedModel | StudioModel,
    example: Batch | StudioBatch,
    path: Path,
    external_data: bool = False,
) -> None:
    """Trace a fused model with a dynamic batch and write it as ONNX.

    Tracing is symbolic: a halved model computes nothing in half precision here.

    Args:
        example: two rows of inputs.
        external_data: put the weights into a file beside; beyond 2 GB, where protobuf ends, they always are.
    """
    import logging
    import warnings

    import torch

    feeds = example.feeds()
    batch = torch.export.Dim("batch", min=1, max=TRACED_BATCH)
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it misses torchvision, which we do not use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            model,
            tuple(torch.from_numpy(array) for array in feeds.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(feeds),
            output_names=list(output_names(example)),
            dynamic_shapes=tuple({0: batch} for _ in feeds),
            verbose=False,
        )
    assert program is not None
    forget_origins(program.model)
    program.save(str(path), external_data=external_data or None)


def forget_origins(model: Any) -> None:
    """Remove what the exporter notes of every node: stack traces with this machine's paths, a megabyte of them."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()


def output_names(batch: Batch | StudioBatch) -> tuple[str, ...]:
    """Return what a graph with such inputs gives."""
    return STUDIO_OUTPUT_NAMES if isinstance(batch, StudioBatch) else OUTPUT_NAMES


def onnx_engine(path: Path) -> Engine:
    """Run a plain or a studio graph in ONNX Runtime on the CPU."""
    import onnxruntime

    from cat_serve.contract import STUDIO_OUTPUT_NAMES, Output, StudioOutput

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    studio = len(session.get_outputs()) == len(STUDIO_OUTPUT_NAMES)

    def run(batch: Any) -> Output:
        arrays = session.run(list(output_names(batch)), batch.feeds())
        return StudioOutput(*arrays) if studio else Output(*arrays)

    return run
