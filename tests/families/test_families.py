"""Files in every family's layout, imported as a user does, give what the family's equations give; others are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cat_serve.cli import main
from cat_serve.contract import Batch
from cat_serve.importers import FAMILIES, ImportOptions
from cat_serve.importers.imported import chosen_state
from cat_serve.importers.tensors import Tensors
from cat_serve.model.checkpoint import Checkpoint, load_checkpoint
from cat_serve.model.decoder import to_uint8
from tests.families.specs import SPECS, Spec

Command = Callable[..., list[str]]
READ = [spec for spec in SPECS if spec.family in FAMILIES]
each_kind = pytest.mark.parametrize("spec", READ, ids=lambda spec: spec.name)
TOLERANCE = 1e-5  # of the largest value


def z_of(spec: Spec, rows: int, seed: int = 11) -> Tensor:
    return torch.randn(rows, *spec.config.z_shape, generator=torch.Generator().manual_seed(seed))


def imported(spec: Spec, command: Command, tmp_path: Path, state: Any = None) -> Checkpoint:
    """Write a file, import it by the command, and read the checkpoint."""
    file = spec.write(tmp_path / "published.pth", state)
    out = tmp_path / "made" / f"{spec.family}.safetensors"
    assert main(command(spec, file, out)) == 0
    return load_checkpoint(out)


def assert_close(made: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item()
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=TOLERANCE * max(1, largest))


# --- what comes out ----------------------------------------------------------------------------------


@each_kind
def test_imported_generator_takes_the_step_of_its_equations(
    spec: Spec, command: Command, tmp_path: Path
) -> None:
    generator = imported(spec, command, tmp_path).generator
    z, y = z_of(spec, 3), [4, 0, 9]
    expected = spec.expected(spec.state(), z, y)
    made = generator(z, torch.tensor(y), torch.ones(3))
    assert generator.config.z_shape == spec.config.z_shape
    assert_close(made, expected)
    # and the comparison would notice: another class, another z
    assert (spec.expected(spec.state(), z[:1], [5]) - expected[:1]).abs().max() > 100 * TOLERANCE
    assert (generator(z[1:2], torch.tensor([4]), torch.ones(1)) - made[:1]).abs().max() > 1e-2


@each_kind
def test_decoder_gets_the_latents_as_the_family_scales_them(
    spec: Spec, command: Command, tmp_path: Path
) -> None:
    from cat_serve.model.fused import FusedModel

    checkpoint = imported(spec, command, tmp_path)
    latents = z_of(spec, 2)
    decoder = FusedModel.from_checkpoint(checkpoint).decoder
    expected = pixels_of(spec, checkpoint, latents.double())
    torch.testing.assert_close(decoder(latents), expected, rtol=1e-4, atol=1e-4)


def pixels_of(spec: Spec, checkpoint: Checkpoint, latents: Tensor) -> Tensor:
    """Decode by diffusers what the reference makes of latents; pixels are themselves."""
    if spec.posterior is None:
        assert checkpoint.vae is None
        return latents.float()
    assert checkpoint.vae is not None
    return checkpoint.vae.decode(spec.posterior(spec.state(), latents).float()).sample


@each_kind
def test_command_says_what_the_file_is_and_makes_no_claim_of_fid(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = imported(spec, command, tmp_path)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["family"] == spec.family
    assert report["licence"] == FAMILIES[spec.family].licence
    assert report["classes"] == len(checkpoint.class_names) == 10  # a row of no class is none
    source = checkpoint.training
    assert re.fullmatch("[0-9a-f]{64}", source["imported"]["sha256"])
    assert source["imported"]["sha256"] == report["source_sha256"]
    assert source["licence"] == report["licence"]
    assert "published" not in source  # nobody published one of this size


@pytest.mark.slow
@each_kind
def test_exported_graphs_make_the_images_of_the_equations_in_any_batch(
    spec: Spec, command: Command, tmp_path: Path
) -> None:
    """ONNX Runtime, fp32 within one level and fp16 within its budget, against reference, diffusers and rounding."""
    from cat_serve.contract import Output
    from export.graphs import onnx_engine, plan, write_graph
    from export.parity import compare, require
    from export.probes import in_batches, rows

    checkpoint = imported(spec, command, tmp_path)
    z, y = z_of(spec, 5), [4, 0, 9, 4, 2]
    batch = Batch(z.numpy(), np.array(y), np.ones(5, np.float32))
    pixels = pixels_of(spec, checkpoint, spec.expected(spec.state(), z, y))
    expected = Output(to_uint8(pixels).numpy(), np.ones(5, bool))
    assert expected.images.std() > 5  # not one colour
    for graph in plan(["fp32", "fp16"], "fp16", None):
        path = tmp_path / graph.name
        write_graph(graph.build(checkpoint), rows(batch, slice(2)), path)
        for size in (1, 2, 5):
            made = in_batches(onnx_engine(path), batch, size)
            assert made.ok.all()
            require(compare(expected, made), graph.precision, f"{spec.name}, batches of {size}")


@pytest.mark.parametrize(
    ("spec", "size"),
    [(spec, size) for spec in READ for size in spec.published],
    ids=lambda value: getattr(value, "name", value),
)
def test_published_sizes_fit_their_importer(spec: Spec, size: str, tmp_path: Path) -> None:
    """Layouts of published files on the meta device: every key is known, every shape is right, none is left."""
    config = spec.reference.SIZES[size]
    read = read_on_meta(spec, size, tmp_path)
    assert read.z_shape == config.z_shape
    assert (read.width, read.heads, read.patch) == (config.width, config.heads, config.patch)
    assert read.num_classes == 1000
    assert len(read.order) == config.depth * getattr(config, "repeats", 1)
    assert read.z_scale == getattr(config, "noise_scale", 1.0)


def read_on_meta(spec: Spec, size: str, folder: Path) -> Any:
    """Return the configuration that the importer of a published size finds."""
    whole = replace(spec, config=spec.reference.SIZES[size])
    config, path = whole.config, Path("published.pth")
    layout = spec.reference.layout(config).items()
    state = {key: torch.empty(shape, device="meta") for key, shape in layout}
    if hasattr(spec.reference, "wrapper"):
        state |= {key: torch.ones(shape) for key, shape in spec.reference.wrapper(config).items()}
    content = spec.reference.published(config, state, state)
    module = import_module(FAMILIES[spec.family].module)
    options = ImportOptions(**whole.beside(folder), **spec.published[size])
    tensors = Tensors(chosen_state(module, content, path, options), path, module.WHOSE)
    found = module.read(tensors, options)
    tensors.finish()
    return found.generator.config


# --- what is refused ----------------------------------------------------------------------------------


def refusal(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    state: Any = None, code: int = 1, vae: int | None = None, **more: Any,
) -> str:  # fmt: skip
    """Import a file that must be refused; return what was said."""
    file, out = tmp_path / "published.pth", tmp_path / "never.safetensors"
    spec.write(file, state, **more)
    assert main(command(spec, file, out, vae)) == code
    assert not out.exists()
    return capsys.readouterr().err


def some_key(spec: Spec) -> str:
    """Return the name of a matrix in the middle of the network."""
    return next(
        key for key in spec.state() if re.search(r"blocks\.1\.attn\.(qkv|q_proj).*weight", key)
    )


@each_kind
def test_a_missing_tensor_is_named(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = some_key(spec)
    state = {k: v for k, v in spec.state().items() if k != key}
    said = refusal(spec, command, tmp_path, capsys, state)
    assert "published.pth" in said
    assert "blocks.1.attn" in said


@each_kind
def test_a_tensor_too_many_is_named(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = some_key(spec).replace(".attn.", ".extra.")
    said = refusal(spec, command, tmp_path, capsys, spec.state() | {extra: torch.ones(3)})
    assert "blocks.1.extra" in said


@each_kind
def test_a_tensor_of_another_shape_or_with_nan_is_named(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = some_key(spec)
    cut = spec.state() | {key: spec.state()[key][:-1]}
    assert "blocks.1.attn" in refusal(spec, command, tmp_path, capsys, cut)
    sick = spec.state() | {key: torch.full_like(spec.state()[key], torch.nan)}
    assert "not finite" in refusal(spec, command, tmp_path, capsys, sick)


@each_kind
def test_files_of_other_families_are_refused(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in SPECS:
        if other.family == spec.family:
            continue
        file, out = other.write(tmp_path / "other.pth"), tmp_path / "never.safetensors"
        assert main(command(spec, file, out)) in (1, 2), other.name
        assert not out.exists()
        assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("family", ["imf", "pmf"])
def test_guidance_of_a_size_that_was_not_published_must_be_given(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = next(spec for spec in SPECS if spec.name == family)
    file, out = spec.write(tmp_path / "published.pth"), tmp_path / "never.safetensors"
    names = tmp_path / "names.txt"
    line = ["import", family, str(file), "--out", str(out), "--class-names", str(names)]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "no published size" in said
    assert "--omega" in said
    assert not out.exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@each_kind
def test_a_file_that_wants_something_executed_is_refused_with_a_recipe(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "executed"
    said = refusal(spec, command, tmp_path, capsys, cfg=Evil(trace))
    assert "wants something executed" in said
    assert "sandbox" in said
    assert not trace.exists()


@each_kind
def test_a_decoder_for_other_latents_is_refused(
    spec: Spec, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if spec.posterior is None:
        line = command(spec, spec.write(tmp_path / "published.pth"), tmp_path / "never.safetensors")
        assert main([*line, "--vae", str(tmp_path)]) == 2
        assert "--vae" in capsys.readouterr().err
        return
    said = refusal(spec, command, tmp_path, capsys, code=2, vae=3)
    assert "latents of 3 channels" in said


# --- which families there are -------------------------------------------------------------------------


def test_docs_name_every_family_and_say_which_are_not_read_yet(project_root: Path) -> None:
    text = (project_root / "docs" / "families.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z]+)` \|.*\| (read|not read yet) \|$", text, re.MULTILINE))
    assert set(rows) == {"gat", *(spec.family for spec in SPECS)}
    assert {name for name, said in rows.items() if said == "read"} == set(FAMILIES)
