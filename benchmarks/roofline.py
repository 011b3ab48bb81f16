"""What a forward pass, a machine and a million images take, by arithmetic alone.

A forward pass over a batch takes, for the generator and then for the decoder, the longest of three times:
multiplications at a share of the GPU's peak, bytes at a share of its bandwidth, and kernels at the pace of their
launches. Both shares are given as a range, because nobody knows them before a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

HALF_BYTES = 2
IMAGE_PX = 256
RAW_BYTES = IMAGE_PX**2 * 3  # uint8 between Triton and the front end


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says, and a price that is an example.

    Attributes:
        peak_tflops: dense FP16 on tensor cores, accumulated in FP32; half of what is advertised with sparsity.
        dollars_per_hour: an assumption; replace it with yours.
    """

    name: str
    peak_tflops: float
    bandwidth_gb_s: float
    memory_gb: float
    dollars_per_hour: float


# NVIDIA's data sheets, SXM forms of A100 (80 GB), H100 and H200, HGX form of B200.
#   name    TFLOPS     GB/s   GB   $/h
GPUS = (
    Gpu("L4",    121.0,   300,  24, 0.70),
    Gpu("A10G",   70.0,   600,  24, 1.00),
    Gpu("L40S",  362.1,   864,  48, 1.60),
    Gpu("A100",  312.0,  2039,  80, 2.20),
    Gpu("H100",  989.4,  3350,  80, 3.50),
    Gpu("H200",  989.4,  4800, 141, 4.00),
    Gpu("B200", 2250.0,  8000, 180, 6.00),
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """What one image costs; a test counts all of it again on the real modules.

    Attributes:
        gmacs: thousand million multiplications of an image.
        parameters_m: millions; read once for each pass, whatever the batch.
        moved_m: millions of numbers that matrix products, convolutions, group norms and upsampling read and
            write for an image; everything between them is taken as fused.
        largest_m: millions of numbers in the largest of those tensors.
        kernels: matrix products, convolutions, attentions and norms of a pass.
    """

    gmacs: float
    parameters_m: float
    moved_m: float
    largest_m: float
    kernels: int


# name            GMACs  params(M)  moved(M)  largest(M)  kernels
NETWORKS = {
    "CAT-M/2": Network( 46.0, 260.6, 133.1,  1.05, 256),
    "CAT-H/2": Network(166.8, 959.4, 278.4,  1.75, 336),
    "full":    Network(311.1,  49.5, 572.7, 16.78,  66),
    "tiny":    Network( 17.7,   1.2,  72.3,  4.19,  35),
}  # fmt: skip
MODELS = ("CAT-M/2", "CAT-H/2")
DECODERS = ("full", "tiny")
REFERENCE_BATCH = 16


@dataclass(frozen=True)
class Utilisation:
    """Shares of peak and bandwidth that are reached, and the time that one kernel takes at the least."""

    peak: float
    bandwidth: float
    launch_us: float


# Convolutions and matrix products of this size in TensorRT: a plain engine, and a tuned one with CUDA graphs.
LOW, HIGH = Utilisation(0.30, 0.60, 5.0), Utilisation(0.60, 0.85, 2.0)


@dataclass(frozen=True)
class Site:
    """What stands around a GPU, and how it is run."""

    cores_per_gpu: float = 8
    gbit_per_gpu: float = 10
    duty: float = 0.5  # of paid hours at full load
    headroom: float = 0.6  # of the low estimate that is planned with
    cached: float = 0.8  # of the images that a CDN answers, where permalinks are used
    zones: int = 3
    # Milliseconds of a core are measured by this project on one slow core at 256 px; kilobytes are assumed.
    request_ms: float = 0.4
    grpc_ms: float = 4.4 / 32  # for each image, over one connection
    encoders: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"PNG": (4.1, 110), "JPEG": (0.2, 30)}
    )


# --- formulas --------------------------------------------------------------------------------


def network_ms(network: Network, gpu: Gpu, batch: int, reached: Utilisation) -> float:
    """Return how long one network takes for a batch: the longest of its three roofs."""
    compute = 2 * network.gmacs * batch / (gpu.peak_tflops * reached.peak)  # GFLOP / TFLOPS = ms
    gigabytes = HALF_BYTES * (network.parameters_m + batch * network.moved_m) / 1e3
    memory = 1e3 * gigabytes / (gpu.bandwidth_gb_s * reached.bandwidth)
    return max(compute, memory, network.kernels * reached.launch_us / 1e3)


def pass_ms(model: str, decoder: str, gpu: Gpu, batch: int, reached: Utilisation) -> float:
    """Return how long a forward pass takes: the generator, then the decoder."""
    return sum(network_ms(NETWORKS[name], gpu, batch, reached) for name in (model, decoder))


def images_per_s(model: str, decoder: str, gpu: Gpu, batch: int, reached: Utilisation) -> float:
    return 1e3 * batch / pass_ms(model, decoder, gpu, batch, reached)


def pairs() -> Iterator[tuple[str, str]]:
    return ((model, decoder) for model in MODELS for decoder in DECODERS)


def rates(model: str, decoder: str, gpu: Gpu, batch: int = REFERENCE_BATCH) -> tuple[float, float]:
    """Return the low and the high estimate of images/s."""
    return (
        images_per_s(model, decoder, gpu, batch, LOW),
        images_per_s(model, decoder, gpu, batch, HIGH),
    )


def memory_gb(model: str, decoder: str, batch: int) -> float:
    """Return what an engine holds: weights, three of the largest tensors at a time, 1 GB for CUDA and workspace."""
    networks = [NETWORKS[name] for name in (model, decoder)]
    weights = sum(each.parameters_m for each in networks)
    live = 3 * batch * max(each.largest_m for each in networks)
    return HALF_BYTES * (weights + live) / 1e3 + 1


def dollars_per_million(rate: float, dollars_per_hour: float, duty: float) -> float:
    """Return the cost of a million images at `rate` images/s; a GPU is paid for when it idles too."""
    return 1e6 / (rate * duty * 3600) * dollars_per_hour


def limits(rate: float, site: Site, encoder: str) -> dict[str, float]:
    """Return how many images/s one GPU of `rate` images/s makes, and each part beside it lets pass."""
    encode_ms, kilobytes = site.encoders[encoder]
    kilobytes_per_gbit = 1e6 / 8
    return {
        "GPU": rate,
        "encoding": 1e3 * site.cores_per_gpu / (encode_ms + site.request_ms),
        "gRPC connection": 1e3 / site.grpc_ms,
        "network": site.gbit_per_gpu * kilobytes_per_gbit / (RAW_BYTES / 1e3 + kilobytes),
    }


def first_limit(rate: float, site: Site, encoder: str) -> str:
    """Name what saturates first when images leave in one format."""
    allowed = limits(rate, site, encoder)
    return min(allowed, key=lambda name: allowed[name])


@dataclass(frozen=True)
class Plan:
    """What a rate of images/s takes."""

    gpus: int
    front_ends: int
    internal_gbit: float
    outgoing_gbit: float


def plan(rate: float, gpu_rate: float, cached: float, site: Site, cores: float = 4) -> Plan:
    """Return the machines for `rate` images/s, such that one zone of several may be lost.

    Args:
        gpu_rate: what one GPU is planned with, images/s.
        cached: share of images that never reach us.
        cores: of one front end.
    """
    made = rate * (1 - cached)
    encode_ms, kilobytes = site.encoders["PNG"]
    cores_needed = made * (encode_ms + site.request_ms + site.grpc_ms) / 1e3 / site.headroom
    # The zones that are left carry everything; a single image/s needs no zones, but a second machine.
    spread = site.zones / (site.zones - 1)
    return Plan(
        max(2, math.ceil(spread * made / gpu_rate)),
        max(2, math.ceil(spread * cores_needed / cores)),
        made * RAW_BYTES * 8 / 1e9,
        rate * kilobytes * 8 / 1e6,
    )
