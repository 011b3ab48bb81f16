"""The sizing page: its tables are those of the script, and the script's counts are those of the real networks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import sizing
from benchmarks.roofline import (
    GPUS,
    HIGH,
    LOW,
    NETWORKS,
    RAW_BYTES,
    Network,
    Site,
    dollars_per_million,
    first_limit,
    images_per_s,
    limits,
    memory_gb,
    network_ms,
    pass_ms,
    plan,
)
from cat_serve.model.config import generator_preset
from cat_serve.model.generator import Generator

BY_NAME = {gpu.name: gpu for gpu in GPUS}
H100 = BY_NAME["H100"]
MOVING = {"mm", "addmm", "bmm", "convolution", "native_group_norm", "upsample_nearest2d"}


class Traffic(TorchDispatchMode):
    """Counts numbers that go into and come out of operations that are not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if func.__name__.partition(".")[0] in MOVING:
            made = out[0] if isinstance(out, tuple) else out
            self.moved += sum(each.numel() for each in args if isinstance(each, Tensor))
            self.moved += made.numel()
            self.largest = max(self.largest, made.numel())
        return out


class FullDecoder(nn.Module):
    """SD-VAE's decoder, with the convolution before it."""

    def __init__(self) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        channels = (128, 256, 512, 512)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=channels, layers_per_block=2, latent_channels=4,
        )  # fmt: skip
        self.before, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.before(latents))


def build(name: str) -> nn.Module:
    if name == "full":
        return FullDecoder()
    if name == "tiny":
        from diffusers import AutoencoderTiny

        return AutoencoderTiny().decoder
    return Generator(generator_preset(name.removeprefix("CAT-").removesuffix("/2")))


def inputs(name: str, batch: int) -> tuple[Tensor, ...]:
    if name in ("full", "tiny"):
        return (torch.zeros(batch, 4, 32, 32),)
    return torch.zeros(batch, 64), torch.zeros(batch, dtype=torch.long)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("CAT-") else ())
        for name in NETWORKS
    ],
)
def test_what_a_network_costs_is_counted_on_the_real_one(name: str) -> None:
    moved = []
    with torch.device("meta"), torch.no_grad():
        network = build(name).eval()
        with FlopCounterMode(display=False) as flops:
            network(*inputs(name, 1))
        for batch in (1, 2):
            with Traffic() as traffic:
                network(*inputs(name, batch))
            moved.append(traffic.moved)
            largest = traffic.largest / batch
    stated = NETWORKS[name]
    assert stated.gmacs == pytest.approx(flops.get_total_flops() / 2e9, rel=0.003)
    parameters = sum(each.numel() for each in network.parameters())
    assert stated.parameters_m == pytest.approx(parameters / 1e6, rel=0.02)
    # What a second image adds; the rest of the first pass is weights.
    assert stated.moved_m == pytest.approx((moved[1] - moved[0]) / 1e6, rel=0.003)
    assert (2 * moved[0] - moved[1]) == pytest.approx(parameters, rel=0.02)
    assert stated.largest_m == pytest.approx(largest / 1e6, rel=0.01)


# --- formulas --------------------------------------------------------------------------------


def test_each_roof_holds_when_it_is_the_lowest() -> None:
    gpu = replace(H100, peak_tflops=100, bandwidth_gb_s=1000)
    computing = Network(gmacs=1000, parameters_m=0, moved_m=0, largest_m=0, kernels=0)
    assert network_ms(computing, gpu, 3, HIGH) == pytest.approx(3 * 2e12 / (100e12 * 0.6) * 1e3)
    moving = Network(gmacs=0, parameters_m=1000, moved_m=500, largest_m=0, kernels=0)
    seconds = 2 * (1e9 + 3 * 0.5e9) / (1000e9 * 0.85)
    assert network_ms(moving, gpu, 3, HIGH) == pytest.approx(1e3 * seconds)
    launching = Network(gmacs=0, parameters_m=0, moved_m=0, largest_m=0, kernels=1000)
    assert network_ms(launching, gpu, 3, HIGH) == pytest.approx(2.0)
    assert network_ms(launching, gpu, 3, LOW) == pytest.approx(5.0)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_no_estimate_is_beyond_what_the_gpu_can_do(gpu: Any) -> None:
    for model, decoder in sizing.pairs():
        gflop = 2 * (NETWORKS[model].gmacs + NETWORKS[decoder].gmacs)
        rates = [images_per_s(model, decoder, gpu, 64, reached) for reached in (LOW, HIGH)]
        assert rates[0] < rates[1] <= 0.6 * gpu.peak_tflops * 1e3 / gflop * 1.0001
        assert pass_ms(model, decoder, gpu, 2, LOW) > pass_ms(model, decoder, gpu, 1, LOW) * 0.999


def test_memory_is_weights_tensors_and_a_gigabyte() -> None:
    assert memory_gb("CAT-H/2", "full", 0) == pytest.approx(1 + 2 * (0.9594 + 0.0495))
    assert memory_gb("CAT-M/2", "full", 64) - memory_gb("CAT-M/2", "full", 0) == pytest.approx(
        64 * 3 * 2 * 16.78e-3
    )


def test_a_million_images_cost_the_hours_they_take() -> None:
    # 100 images/s for 10,000 s are 2.78 hours; at half load twice as many are paid for.
    assert dollars_per_million(100, 3.6, duty=1) == pytest.approx(10)
    assert dollars_per_million(100, 3.6, duty=0.5) == pytest.approx(20)


def test_the_scarcest_part_is_named() -> None:
    site = Site(cores_per_gpu=9, gbit_per_gpu=1)
    allowed = limits(500, site, "PNG")
    assert allowed["encoding"] == pytest.approx(9000 / 4.5)
    assert allowed["network"] == pytest.approx(1e9 / 8 / (RAW_BYTES + 110_000))
    assert first_limit(1_000, site, "PNG") == "network"
    assert first_limit(100, site, "PNG") == "GPU"
    assert first_limit(10_000, replace(site, gbit_per_gpu=100), "PNG") == "encoding"
    assert first_limit(50_000, Site(1000, 1000), "JPEG") == "gRPC connection"


def test_what_is_left_after_a_zone_is_lost_carries_everything() -> None:
    site = Site()
    big = plan(10_000, 250, 0, site)
    assert big.gpus * 2 / 3 * 250 >= 10_000
    assert (big.gpus - 2) * 2 / 3 * 250 < 10_000
    assert plan(10_000, 250, 0.8, site).gpus == pytest.approx(big.gpus / 5, abs=1)
    assert plan(10_000, 250, 0.8, site).outgoing_gbit == big.outgoing_gbit == pytest.approx(8.8)
    assert plan(0.1, 250, 0, site).gpus == 2


# --- command and page ------------------------------------------------------------------------


def test_page_has_the_tables_of_the_script(project_root: Path) -> None:
    page = (project_root / "docs" / "sizing.md").read_text(encoding="utf-8")
    made = sizing.tables(GPUS, Site())
    assert set(re.findall(r"<!-- (\w+) -->", page)) == {*made, "end"}
    assert sizing.fill(page, made) == page
    assert sizing.fill(page, made | {"cost": "changed"}) != page


def test_page_states_the_counts_that_are_used(project_root: Path) -> None:
    page = (project_root / "docs" / "sizing.md").read_text(encoding="utf-8")
    for name, network in NETWORKS.items():
        row = f"| {network.gmacs} | {network.parameters_m} | {network.moved_m} |"
        (line,) = (line for line in page.splitlines() if line.endswith(row))
        assert name in line
    shares = [
        NETWORKS["full"].gmacs / (NETWORKS["full"].gmacs + NETWORKS[m].gmacs)
        for m in ("CAT-M/2", "CAT-H/2")
    ]
    assert f"{shares[0]:.0%} of CAT-M/2's".replace("%", " %") in page
    assert f"{shares[1]:.0%} of CAT-H/2's".replace("%", " %") in page


def test_prices_and_shares_change_the_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert sizing.main([]) == 0
    usual = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sizing.main(["--price", "H100=7.00", "--duty", "1"]) == 0
    dear = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert usual["computed_not_measured"] is True
    for before, after in zip(usual["figures"], dear["figures"], strict=True):
        factor = 2 / 2 if before["gpu"] == "H100" else 1 / 2
        expected = [value * factor for value in before["dollars_per_million"]]
        assert after["dollars_per_million"] == pytest.approx(expected, abs=0.011)
        assert after["images_per_s"] == before["images_per_s"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--price", "H101=1"],
        ["--price", "H100=free"],
        ["--price", "H100=0"],
        ["--duty", "0"],
        ["--cached", "1"],
        ["--cores-per-gpu", "0"],
        ["--document", "no/such/page.md"],
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizing.main(arguments) == 2
    assert "error: " in capsys.readouterr().err


def test_document_and_plot_are_written(
    tmp_path: Path, project_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plot = tmp_path / "sizing.md", tmp_path / "sizing.png"
    original = (project_root / "docs" / "sizing.md").read_text(encoding="utf-8")
    page.write_text(original.replace("| H100 |", "| stale |"))
    assert sizing.main(["--document", str(page), "--plot", str(plot)]) == 0
    assert page.read_text() == original
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    unmarked = original.replace("<!-- cost -->", "")
    unended = original.replace("\n\n<!-- end", "<!-- end", 1)
    for broken in (unmarked, original + original, unended):
        page.write_text(broken)
        assert sizing.main(["--document", str(page)]) == 2
        assert page.read_text() == broken
