"""GAT's layout: a file written in it gives what its equations give; anything else is refused by name."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cat_serve.cli import main
from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.importers import ImportOptions
from cat_serve.importers.gat import convert
from cat_serve.model.checkpoint import Checkpoint, load_checkpoint
from cat_serve.model.config import generator_preset
from cat_serve.model.generator import Generator

from .conftest import DEPTH, HEAD_DIM, PATCH, SIDE, GatFile, gat_args, gat_state

NAMES = "\n".join(f"thing {i}" for i in range(10))


@pytest.fixture
def options(vae_folder: Path, tmp_path: Path) -> ImportOptions:
    names = tmp_path / "names.txt"
    names.write_text(NAMES)
    return ImportOptions(vae_folder, class_names=names)


# --- GAT's forward pass, token by token and head by head, on its own names --------------------------


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def affine(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for i in range(0, x.shape[-1], 2):
        a, b = x[:, i], x[:, i + 1]
        out[:, i] = a * cos[:, i] - b * sin[:, i]
        out[:, i + 1] = b * cos[:, i + 1] + a * sin[:, i + 1]
    return out


def attend(s: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    q, k, v = affine(s, f"{block}.attn.qkv", x).chunk(3, dim=-1)
    cos, sin = s["feat_rope.freqs_cos"], s["feat_rope.freqs_sin"]
    parts = []
    for start in range(0, x.shape[-1], HEAD_DIM):
        head = slice(start, start + HEAD_DIM)
        queries = rotated(rms(q[:, head]) * s[f"{block}.attn.q_norm.weight"], cos, sin)
        keys = rotated(rms(k[:, head]) * s[f"{block}.attn.k_norm.weight"], cos, sin)
        parts.append((queries @ keys.T / HEAD_DIM**0.5).softmax(-1) @ v[:, head])
    return affine(s, f"{block}.attn.proj", torch.cat(parts, -1))


def gat_slowly(state: dict[str, Tensor], z: Tensor, y: int, gat_psi: float = 0.0) -> list[Tensor]:
    """Return GAT's outputs of one sample after each of its final layers, float64 [4, grid, grid]."""
    s = {key: tensor.double() for key, tensor in state.items()}
    embedding = s["y_embedder.embedding_table.weight"][y]
    c = torch.cat([rms(embedding, 1e-8), rms(z.double(), 1e-8)])
    hidden = 0.01 * s["latent_embedder.0.weight"] @ c + 0.01 * s["latent_embedder.0.bias"]
    hidden = torch.nn.functional.silu(hidden)
    w = 0.01 * s["latent_embedder.2.weight"] @ hidden + 0.01 * s["latent_embedder.2.bias"]
    w = w + gat_psi * (s["w_avg"][y] - w)
    lit = torch.nn.functional.silu(w)

    x, image, images, side = (
        s["pos_embed"][0],
        torch.zeros(4, SIDE, SIDE).double(),
        [],
        SIDE // PATCH,
    )
    for i in range(DEPTH):
        block = f"blocks.{i}"
        scale1, gate1, scale2, gate2 = affine(s, f"{block}.adaLN_modulation.1", lit).chunk(4)
        x = x + gate1 * attend(s, block, rms(x) * (1 + scale1))
        a, b = affine(s, f"{block}.mlp.w12", rms(x) * (1 + scale2)).chunk(2, dim=-1)
        x = x + gate2 * affine(s, f"{block}.mlp.w3", torch.nn.functional.silu(a) * b)
        head = f"final_layers.{i}"
        scale = affine(s, f"{head}.adaLN_modulation.1", lit)
        patches = affine(s, f"{head}.linear", rms(x) * (1 + scale))
        image = image.clone()
        for token, patch in enumerate(patches.reshape(-1, PATCH, PATCH, 4)):
            row, column = PATCH * (token // side), PATCH * (token % side)
            image[:, row : row + PATCH, column : column + PATCH] += patch.permute(2, 0, 1)
        images.append(image)
    return images


@pytest.mark.parametrize("psi", [1.0, 0.7, 0.0])
def test_imported_generator_computes_what_gat_computes(
    gat_file: GatFile, options: ImportOptions, psi: float
) -> None:
    generator = convert(gat_file(), options).generator
    z = torch.randn(3, 64, generator=torch.Generator().manual_seed(7))
    y = torch.tensor([3, 0, 9])
    stages = generator(z, y, torch.full((3,), psi), stages=True)
    for row in range(3):
        slow = gat_slowly(gat_state(), z[row], int(y[row]), gat_psi=1 - psi)
        torch.testing.assert_close(stages[row].double(), torch.stack(slow), rtol=1e-4, atol=1e-4)


def test_averaged_weights_are_taken_unless_the_others_are_asked_for(
    gat_file: GatFile, options: ImportOptions
) -> None:
    path = gat_file()
    other = ImportOptions(options.vae, class_names=options.class_names, weights="generator")
    for chosen, seed in ((options, 0), (other, 1)):
        generator = convert(path, chosen).generator
        torch.testing.assert_close(generator.w_avg, gat_state(seed)["w_avg"], rtol=0, atol=0)


def test_half_precision_weights_are_widened(gat_file: GatFile, options: ImportOptions) -> None:
    halved = {key: tensor.to(torch.bfloat16) for key, tensor in gat_state().items()}
    tables = {
        key: gat_state()[key] for key in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
    }
    generator = convert(gat_file(halved | tables), options).generator
    assert {tensor.dtype for tensor in generator.state_dict().values()} == {torch.float32}


def test_every_published_size_has_gat_number_of_tensors() -> None:
    """363 in GAT-XL/2: ours, its dead patch embedding, its position table and its two tables of rotations."""
    with torch.device("meta"):
        generator = Generator(generator_preset("XL", modulation="no_shift"))
    assert len(generator.state_dict()) + 2 + 1 + 2 == 363


# --- the command ------------------------------------------------------------------------------------


def test_command_writes_a_checkpoint_that_says_where_it_came_from(
    gat_file: GatFile, options: ImportOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = gat_file(), tmp_path / "made" / "gat.safetensors"
    command = ["import", "gat", str(path), "--vae", str(options.vae), "--out", str(out)]
    assert main([*command, "--class-names", str(options.class_names)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    checkpoint = load_checkpoint(out)
    assert checkpoint.name == report["model"] == "gat-4x16-2-128"
    assert checkpoint.class_names[3] == "thing 3"
    source = checkpoint.training
    assert source["imported"]["sha256"] == report["source_sha256"]
    assert source["licence"] == "MIT"
    assert source["steps"] == 400_000
    assert source["args"]["enc_type"] == "dinov2-vit-b"
    assert "published" not in source  # of a size that was never published


@pytest.mark.slow
def test_imported_checkpoint_goes_the_whole_line(
    gat_file: GatFile, options: ImportOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cat_serve.backends import open_backend
    from cat_serve.backends.base import EngineOptions
    from cat_serve.contract import Batch
    from cat_serve.manifest import load_artefact
    from export.onnx import main as export

    out = tmp_path / "gat.safetensors"
    command = ["import", "gat", str(gat_file()), "--vae", str(options.vae), "--out", str(out)]
    assert main([*command, "--class-names", str(options.class_names), "--name", "gat-small"]) == 0
    repository = tmp_path / "repository"
    assert (
        export(
            [
                str(out),
                "--repository",
                str(repository),
                "--precision",
                "fp32",
                "--studio-precision",
                "none",
            ]
        )
        == 0
    )
    artefact = load_artefact(repository / "gat-small" / "1")
    assert artefact.manifest.source["family"] == "GAT"
    backend = open_backend("onnxruntime", artefact, EngineOptions())
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).numpy()
    made = backend.run(Batch(z, np.array([1, 2]), np.ones(2, np.float32)))
    backend.close()
    assert made.ok.all()
    assert made.images.shape == (2, 128, 128, 3)


def test_families_are_listed_with_their_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--list"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    gat = dict(zip(heading.split("\t"), rows[0].split("\t"), strict=True))
    assert gat["family"] == "gat"
    assert gat["licence"] == "MIT"
    assert "2.18" in gat["fid_as_published"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "family and file and out"),
        (["gat", "f.pt", "--vae", "v"], "needs out"),
        (["gat", "f.pt", "--vae", "v", "--out", "x.pt"], "must end in .safetensors"),
        (["gat", "f.pt", "--vae", "v", "--out", "x.safetensors", "--name", "GAT/XL"], "GAT/XL"),
        (["stylegan", "f.pt", "--vae", "v", "--out", "x.safetensors"], "No family 'stylegan'"),
    ],
)
def test_arguments_that_do_not_fit_are_usage_errors(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", *arguments]) == 2
    assert said in capsys.readouterr().err


# --- files that are refused --------------------------------------------------------------------------


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_file_that_wants_something_executed_is_refused_and_nothing_runs(
    gat_file: GatFile, options: ImportOptions, tmp_path: Path
) -> None:
    trace = tmp_path / "executed"
    with pytest.raises(CheckpointError, match="wants something executed") as refused:
        convert(gat_file(extra=Evil(trace)), options)
    assert not trace.exists()
    assert "sandbox" in str(refused.value)


def test_flags_of_another_type_than_gats_are_not_opened(
    gat_file: GatFile, options: ImportOptions
) -> None:
    with pytest.raises(CheckpointError, match="wants something executed"):
        convert(gat_file(args=argparse.Action([], "x")), options)


def without(key: str) -> dict[str, Tensor]:
    state = gat_state()
    del state[key]
    return state


def changed(key: str, tensor: Tensor) -> dict[str, Tensor]:
    return gat_state() | {key: tensor}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (without("blocks.2.attn.qkv.bias"), r"lacks weights: blocks\.2\.attention\.qkv\.bias"),
        (without("w_avg"), "lacks weights: w_avg"),
        (without("blocks.0.attn.q_norm.weight"), "no tensor 'blocks.0.attn.q_norm.weight'"),
        (without("feat_rope.freqs_sin"), "feat_rope.freqs_sin does not fit"),
        (changed("blocks.0.norm3.weight", torch.ones(2)), r"belong nowhere: blocks\.0\.norm3\.weight"),
        (changed("blocks.1.attn.proj.bias", torch.ones(3)), r"attention\.out\.bias has shape \(3,\)"),
        (changed("pos_embed", torch.zeros(1, 64, 16)), "another pos_embed than GAT's"),
        (changed("final_layers.3.linear.bias", torch.full((16,), torch.nan)), "is not finite"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(
    gat_file: GatFile, options: ImportOptions, state: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        convert(gat_file(state), options)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"num_classes": 1000}, "says num_classes 1000, but its weights are of 10"),
        ({"resolution": 256}, "says resolution 256, but its weights are of 128"),
        ({"qk_norm": False}, "says qk_norm False"),
    ],
)
def test_flags_that_contradict_the_weights_are_errors(
    gat_file: GatFile, options: ImportOptions, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        convert(gat_file(args=gat_args(**args)), options)


def test_a_file_without_flags_is_read(gat_file: GatFile, options: ImportOptions) -> None:
    assert isinstance(convert(gat_file(args=...), options), Checkpoint)


def test_other_files_are_refused_by_what_they_are(
    gat_file: GatFile, options: ImportOptions, tmp_path: Path
) -> None:
    text, cut, tensor, other = (tmp_path / name for name in ("a.pt", "b.pt", "c.pt", "d.pt"))
    text.write_text("hello")
    whole = gat_file().read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    torch.save(torch.zeros(3), tensor)
    torch.save({"model": gat_state()}, other)
    for path, said in (
        (tmp_path / "none.pt", "There is no file"),
        (text, "no file of torch.save"),
        (cut, "no file of torch.save"),
        (tensor, "holds a Tensor"),
        (other, "has no 'ema' weights; it has 'model'"),
    ):
        with pytest.raises(CheckpointError, match=said):
            convert(path, options)


def test_class_names_are_needed_where_they_are_not_imagenets(
    gat_file: GatFile, options: ImportOptions, tmp_path: Path
) -> None:
    path = gat_file()
    with pytest.raises(InvalidInput, match="10 classes, which are not ImageNet's"):
        convert(path, ImportOptions(options.vae))
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    with pytest.raises(InvalidInput, match="has 2 class names, and the file has 10"):
        convert(path, ImportOptions(options.vae, class_names=few))
