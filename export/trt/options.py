"""What a TensorRT engine is asked to be, what each builder can do of it, and the same said to NVIDIA's own tool."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from cat_serve.errors import InvalidInput, MissingDependency

MIB = 2**20

HardwareCompatibility = Literal["none", "ampere+", "same-compute-capability"]
HARDWARE_COMPATIBILITY: tuple[HardwareCompatibility, ...] = get_args(HardwareCompatibility)


@dataclass(frozen=True)
class Builder:
    """One of NVIDIA's builders.

    Attributes:
        module: the Python package.
        install: how to get it.
        tool: its command-line tool that does the same.
        needs_gpu: whether it builds at all without a GPU.
        lacks: flags that it cannot serve, and what to do instead.
    """

    module: str
    install: str
    tool: str
    needs_gpu: bool
    lacks: Mapping[str, str]


# What TensorRT-RTX lacks was tried with 1.7.1.116: it takes a timing cache and does nothing with it, warns of hardware
# compatibility and builds without, and fails for want of a lean runtime.
BUILDERS = {
    "tensorrt": Builder(
        module="tensorrt",
        install="pip install 'cat-serve[tensorrt]' on a machine with an NVIDIA GPU",
        tool="trtexec",
        needs_gpu=True,
        lacks={
            "--compute-capability": "it builds for the GPU that is in the machine; use --builder tensorrt-rtx"
        },
    ),
    "tensorrt-rtx": Builder(
        module="tensorrt_rtx",
        install="pip install 'cat-serve[tensorrt-rtx]' (builds without a GPU)",
        tool="tensorrt_rtx",
        needs_gpu=False,
        lacks={
            "--timing-cache": "it times nothing while it builds; leave it out",
            "--hardware-compatibility": "name the GPUs with --compute-capability instead",
            "--version-compatible": "it has no lean runtime to put into an engine; use --builder tensorrt",
        },
    ),
}


@dataclass(frozen=True)
class Profile:
    """The batch sizes that an engine takes, and the one it is tuned for."""

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise InvalidInput(
                f"Batches of {self.min_batch}, {self.opt_batch} and {self.max_batch} are no profile.",
                hint="1 <= --min-batch <= --opt-batch <= --max-batch",
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.min_batch, self.opt_batch, self.max_batch


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        workspace_bytes: memory that a layer may use while it runs; None leaves it to TensorRT.
        compute_capabilities: GPUs to build for, such as "89"; TensorRT-RTX only, empty for its default.
        timing_cache: a file of measured kernels, read before and written after; it changes how long a build takes.
        hardware_compatibility: which other GPUs must be able to run the engine.
        version_compatible: whether later TensorRT versions must be able to run it.
        strip_weights: leave the weights out; they are put back from the same graph by a refit.
    """

    builder: str = "tensorrt"
    profile: Profile = field(default_factory=Profile)
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    strip_weights: bool = False

    def __post_init__(self) -> None:
        """Refuse what the builder cannot do: a flag is served or refused, never ignored."""
        given = {
            "--compute-capability": bool(self.compute_capabilities),
            "--timing-cache": self.timing_cache is not None,
            "--hardware-compatibility": self.hardware_compatibility != "none",
            "--version-compatible": self.version_compatible,
        }
        for flag, instead in BUILDERS[self.builder].lacks.items():
            if given[flag]:
                raise InvalidInput(f"{self.builder} does not support {flag}.", hint=instead)

    def facts(self) -> dict[str, Any]:
        """Return what decides the engine, as JSON; a timing cache only says which kernels need no timing."""
        return {name: value for name, value in asdict(self).items() if name != "timing_cache"} | {
            "compute_capabilities": list(self.compute_capabilities),
            "tf32": False,
        }


def load_package(builder: str) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        MissingDependency: it is not installed, or its libraries do not load.
    """
    try:
        return import_module(BUILDERS[builder].module)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependency(
            f"The builder {builder} cannot be used: {reason}.", hint=BUILDERS[builder].install
        ) from error


def equivalent_command(
    graph: Path, engine: Path, options: BuildOptions, shapes: Mapping[str, list[int]], version: str
) -> str:
    """Return the command of NVIDIA's own tool that builds the same.

    Args:
        shapes: of every input without its batch, by name.
        version: of the builder.
    """
    words = [BUILDERS[options.builder].tool, f"--onnx={graph}", f"--saveEngine={engine}"]
    for name, batch in zip(("min", "opt", "max"), options.profile.sizes, strict=True):
        each = (f"{i}:{'x'.join(map(str, (batch, *rest)))}" for i, rest in shapes.items())
        words.append(f"--{name}Shapes={','.join(each)}")
    words.append("--noTF32")
    if options.builder == "tensorrt" and int(version.partition(".")[0]) < 11:
        words.append("--stronglyTyped")  # later every network is
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes // MIB}")
    if options.compute_capabilities:
        words.append(f"--computeCapabilities={','.join(options.compute_capabilities)}")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if options.hardware_compatibility != "none":
        mode = options.hardware_compatibility.replace(
            "same-compute-capability", "sameComputeCapability"
        )
        words.append(f"--hardwareCompatibilityLevel={mode}")
    words += ["--versionCompatible"] * options.version_compatible
    words += ["--stripWeights"] * options.strip_weights
    if options.strip_weights and options.builder == "tensorrt-rtx":
        words.append("--refit")  # without it the tool promises that the same weights come back
    return shlex.join([*words, "--skipInference"])
