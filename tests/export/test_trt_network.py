"""One path for TensorRT 10, 11 and RTX: real objects of RTX, which has the names of both, and stand-ins for the rest.

RTX has no timing cache, no hardware compatibility, and refits nothing without a GPU. There the stand-ins have the
names of TensorRT 10 and 11, as NVIDIA's Python reference gives them.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx as rtx

from cat_serve.errors import ArtefactError, InvalidInput, MissingDependency
from export.trt.network import (
    attach_timing_cache,
    configure,
    deserialize,
    make_log,
    network_flags,
    open_builder,
    refit,
    strip_flags,
)
from export.trt.options import BuildOptions, Profile, equivalent_command
from export.trt.progress import WHOLE, BuildProgress, progress_monitor


@pytest.fixture
def network(small_graph: Path) -> Iterator[tuple[Any, Any]]:
    """A builder and the small graph's network, of TensorRT-RTX."""
    log = make_log(rtx)
    builder = open_builder(rtx, log, "tensorrt-rtx")
    network = builder.create_network(network_flags(rtx))
    parser = rtx.OnnxParser(network, log)
    assert parser.parse_from_file(str(small_graph))
    yield builder, network
    del parser, network, builder


class FakeConfig:
    """TensorRT's IBuilderConfig, as far as RTX cannot play it."""

    hardware_compatibility_level: Any = "NONE"

    def __init__(self, accepts: bool = True) -> None:
        self.accepts, self.read, self.attached = accepts, b"", False

    def create_timing_cache(self, known: bytes) -> Any:
        self.read = known
        return SimpleNamespace(serialize=lambda: b"timed") if self.accepts else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False  # else timings of another GPU are taken
        self.attached = True
        return self.accepts


# --- networks and options --------------------------------------------------------------------


class OldFlag:
    STRONGLY_TYPED = 1


class NoFlag:
    pass


@pytest.mark.parametrize(("flag", "expected"), [(OldFlag, 2), (NoFlag, 0)])
def test_networks_are_strongly_typed_with_and_without_the_flag(flag: Any, expected: int) -> None:
    assert network_flags(SimpleNamespace(NetworkDefinitionCreationFlag=flag)) == expected


def test_network_is_strongly_typed(network: tuple[Any, Any]) -> None:
    assert network[1].get_flag(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_options_become_flags(network: tuple[Any, Any]) -> None:
    options = BuildOptions(workspace_bytes=2**20, version_compatible=True, strip_weights=True)
    config, flag = configure(rtx, *network, options), rtx.BuilderFlag
    for each in (flag.VERSION_COMPATIBLE, flag.STRIP_PLAN, flag.REFIT_IDENTICAL):
        assert config.get_flag(each), each
    assert not config.get_flag(flag.REFIT)
    assert config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 2**20


def test_nothing_is_set_that_was_not_asked_for(network: tuple[Any, Any]) -> None:
    config = configure(rtx, *network, BuildOptions(profile=Profile(1, 2, 3)))
    assert config.flags == 0  # TF32 too: float32 means float32
    assert config.num_optimization_profiles == 1


def test_rtx_strips_weights_in_its_own_way() -> None:
    flag = rtx.BuilderFlag
    assert strip_flags(rtx, "tensorrt-rtx") == (flag.STRIP_PLAN, flag.REFIT)
    assert strip_flags(rtx, "tensorrt") == (flag.STRIP_PLAN, flag.REFIT_IDENTICAL)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("none", "NONE"),
        ("ampere+", rtx.HardwareCompatibilityLevel.AMPERE_PLUS),
        ("same-compute-capability", rtx.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY),
    ],
)
def test_hardware_compatibility_is_set_by_its_name(wanted: str, expected: Any) -> None:
    from export.trt.network import _set_hardware_compatibility

    config = FakeConfig()
    _set_hardware_compatibility(rtx, config, wanted)
    assert config.hardware_compatibility_level == expected


def test_level_that_an_older_tensorrt_lacks_is_refused() -> None:
    from export.trt.network import _set_hardware_compatibility

    older = SimpleNamespace(__version__="10.8.0.43", HardwareCompatibilityLevel=SimpleNamespace())
    with pytest.raises(InvalidInput, match=r"10\.8\.0\.43 does not support --hardware-compat"):
        _set_hardware_compatibility(older, FakeConfig(), "same-compute-capability")


def test_timing_cache_is_read_before_the_build(tmp_path: Path) -> None:
    config, log, path = FakeConfig(), make_log(rtx), tmp_path / "timing"
    attach_timing_cache(config, log, path)
    assert (config.read, config.attached) == (b"", True)
    path.write_bytes(b"known")
    cache = attach_timing_cache(config, log, path)
    assert config.read == b"known"
    assert cache.serialize() == b"timed"
    with pytest.raises(ArtefactError, match="is no timing cache of this TensorRT and GPU"):
        attach_timing_cache(FakeConfig(accepts=False), log, path)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX 1.2:DeprecationWarning")
def test_timing_cache_is_written_after_the_build(small_graph: Path, tmp_path: Path) -> None:
    """RTX takes a timing cache and does nothing with it but what TensorRT does with one that it cannot read."""
    from export.trt.build import compile_graph

    path = tmp_path / "timing"
    options = BuildOptions("tensorrt-rtx", Profile(1, 2, 4))
    object.__setattr__(options, "timing_cache", path)  # past the refusal of what RTX ignores
    compile_graph(rtx, small_graph, options)
    assert path.stat().st_size > 0
    path.write_bytes(b"of something else")
    with pytest.raises(ArtefactError, match="is no timing cache"):
        compile_graph(rtx, small_graph, options)
    assert (
        path.read_bytes() == b"of something else"
    )  # else timings of hours are lost to a wrong name


# --- without a GPU ---------------------------------------------------------------------------


def test_builder_without_a_gpu_is_a_missing_dependency() -> None:
    """TensorRT's constructor returns nothing then, which its bindings report as a TypeError."""

    def no_gpu(log: Any) -> None:
        log.errors.append("CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt = SimpleNamespace(Builder=no_gpu, __version__="10.9")
    with pytest.raises(MissingDependency, match="failure with error: 35") as caught:
        open_builder(trt, SimpleNamespace(errors=[]), "tensorrt")
    assert "tensorrt-rtx" in str(caught.value.hint)


def test_engine_that_does_not_open_says_why(engine_cache: Path) -> None:
    with pytest.raises(
        ArtefactError, match=r"tensorrt_rtx 1\..* cannot open the engine: .*Assertion bufferSize"
    ):
        deserialize(rtx, make_log(rtx), b"no engine at all", version_compatible=False)


@pytest.mark.parametrize("allowed", [False, True])
def test_host_code_is_allowed_only_for_version_compatible_engines(allowed: bool) -> None:
    runtime = SimpleNamespace(
        engine_host_code_allowed=False, deserialize_cuda_engine=lambda plan: "engine"
    )
    trt = SimpleNamespace(Runtime=lambda log: runtime)
    assert deserialize(trt, None, b"plan", allowed) == (runtime, "engine")
    assert runtime.engine_host_code_allowed is allowed


# --- refit -----------------------------------------------------------------------------------


class FakeRefit:
    """TensorRT's Refitter, OnnxParserRefitter and engine; what they are asked is kept in `calls`."""

    def __init__(self, reads: bool = True, missing: tuple[str, ...] = (), commits: bool = True) -> None:  # fmt: skip
        self.calls: list[Any] = []
        self.reads, self.missing, self.commits = reads, missing, commits
        self.SerializationFlag = rtx.SerializationFlag
        self.num_errors = 0 if reads else 1

    def Refitter(self, engine: Any, log: Any) -> FakeRefit:
        return self

    def OnnxParserRefitter(self, refitter: Any, log: Any) -> FakeRefit:
        return self

    def refit_from_file(self, path: str) -> bool:
        self.calls.append(path)
        return self.reads

    def get_error(self, index: int) -> str:
        return "shapes differ"

    def get_missing_weights(self) -> tuple[str, ...]:
        return self.missing

    def refit_cuda_engine(self) -> bool:
        self.calls.append("refit")
        return self.commits

    def create_serialization_config(self) -> FakeRefit:
        return self

    def clear_flag(self, flag: Any) -> bool:
        self.calls.append(flag)
        return True

    def serialize_with_config(self, config: Any) -> bytes:
        return b"with weights"


def test_refitted_engine_is_written_with_its_weights() -> None:
    trt = FakeRefit()
    assert refit(trt, SimpleNamespace(errors=[]), trt, Path("model.onnx")) == b"with weights"
    assert trt.calls == ["model.onnx", "refit", rtx.SerializationFlag.EXCLUDE_WEIGHTS]


@pytest.mark.parametrize(
    ("trt", "message"),
    [
        (FakeRefit(reads=False), "shapes differ"),
        (FakeRefit(missing=("w", "b")), "2 are missing"),
        (FakeRefit(commits=False), "do not fit"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(trt: FakeRefit, message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        refit(trt, SimpleNamespace(errors=[]), trt, Path("model.onnx"))


# --- the same, said to NVIDIA's tool ---------------------------------------------------------

SHAPES = "--minShapes=z:1x64,k:1 --optShapes=z:2x64,k:2 --maxShapes=z:4x64,k:4 --noTF32"
FULL = BuildOptions(
    profile=Profile(1, 2, 4),
    workspace_bytes=64 * 2**20,
    timing_cache=Path("t c"),
    hardware_compatibility="same-compute-capability",
    version_compatible=True,
    strip_weights=True,
)


@pytest.mark.parametrize(
    ("options", "version", "expected"),
    [
        (BuildOptions(profile=Profile(1, 2, 4)), "10.13.3.9",
         f"trtexec --onnx=m.onnx --saveEngine=m.engine {SHAPES} --stronglyTyped --skipInference"),
        (FULL, "11.4.1.2",
         f"trtexec --onnx=m.onnx --saveEngine=m.engine {SHAPES} --memPoolSize=workspace:64 '--timingCacheFile=t c' "
         "--hardwareCompatibilityLevel=sameComputeCapability --versionCompatible --stripWeights --skipInference"),
        (BuildOptions("tensorrt-rtx", Profile(1, 2, 4), compute_capabilities=("86", "89"), strip_weights=True),
         "1.7.1.116", f"tensorrt_rtx --onnx=m.onnx --saveEngine=m.engine {SHAPES} --computeCapabilities=86,89 "
         "--stripWeights --refit --skipInference"),
    ],
)  # fmt: skip
def test_equivalent_command_says_every_option(
    options: BuildOptions, version: str, expected: str
) -> None:
    shapes = {"z": [64], "k": []}
    command = equivalent_command(Path("m.onnx"), Path("m.engine"), options, shapes, version)
    assert shlex.split(command) == shlex.split(expected)


# --- progress --------------------------------------------------------------------------------


class Bar:
    """A tqdm bar that keeps where it was."""

    def __init__(self) -> None:
        self.n, self.seen = 0, [0]

    def update(self, by: int) -> None:
        self.n += by
        self.seen.append(self.n)

    def set_description(self, *_: Any, **__: Any) -> None:
        pass


def test_bar_follows_a_real_build_to_its_end(
    network: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.trt import progress as trt_progress

    bar = Bar()
    progress = BuildProgress(bar)
    builder, parsed = network
    config = configure(rtx, builder, parsed, BuildOptions(profile=Profile(1, 2, 4)))
    config.progress_monitor = monitor = trt_progress._monitor(rtx, progress)
    assert builder.build_serialized_network(parsed, config) is not None
    assert monitor is not None
    assert bar.seen == sorted(bar.seen)
    assert bar.n == WHOLE
    assert len(set(bar.seen)) > 20


def test_share_of_nested_phases() -> None:
    bar = Bar()
    progress = BuildProgress(bar)
    progress.start("build", None, 4)
    progress.step("build")
    assert bar.n == 250
    progress.start("tactics", "build", 2)
    progress.step("tactics")
    assert bar.n == 375  # half of the second quarter
    progress.finish("tactics")
    assert bar.n == 375
    progress.step("build")
    assert bar.n == 500
    progress.finish("build")
    assert bar.n == WHOLE


def test_interrupt_ends_a_build_at_its_next_step_and_is_raised_after_it() -> None:
    went_on = []

    def build() -> None:
        with progress_monitor(rtx, "small") as monitor:
            monitor.phase_start("build", None, 2)
            went_on.append(monitor.step_complete("build", 0))
            signal.raise_signal(signal.SIGINT)
            went_on.append(monitor.step_complete("build", 1))

    with pytest.raises(KeyboardInterrupt):
        build()
    assert went_on == [True, False]
