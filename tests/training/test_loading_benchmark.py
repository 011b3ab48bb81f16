"""The benchmark of loading counts what the networks really multiply, and measures what it says."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import loading
from training.discriminator import Discriminator, DiscriminatorConfig


def test_discriminators_multiplications_are_those_of_the_network() -> None:
    with torch.device("meta"):
        network = Discriminator(DiscriminatorConfig())
        scales = [torch.empty(1, 4, side, side) for side in network.config.scales]
        y = torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(scales, y)
    assert counter.get_total_flops() / 2e9 == pytest.approx(loading.discriminator_gmacs(), rel=0.01)


def test_one_gpu_takes_its_share_of_its_peak() -> None:
    """375 images/s at 40 % of 989 TFLOPS are 1.06 TFLOP each."""
    gmacs = loading.GENERATORS["cat-m2-256"]
    each = 2e9 * loading.step_gmacs(gmacs)
    assert loading.gpu_images_per_second(gmacs, 989.4) * each == pytest.approx(0.4 * 989.4e12)
    assert loading.feeds(750)["cat-m2-256"] == pytest.approx(2, rel=0.01)


def test_benchmark_measures_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert loading.main(["--count", "600", "--batches", "2"]) == 0
    printed, said = capsys.readouterr()
    report = json.loads(printed)
    assert report["bytes_an_image"] == 16_384
    assert "21.0 GB for ImageNet" in said
    assert all(value > 0 for value in report["measured"].values())
    assert {"read_from_disk", "batches", "photographs_decoded"} <= report["measured"].keys()


def test_nothing_to_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert loading.main(["--batches", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
