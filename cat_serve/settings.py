"""Settings of the server: one declaration gives the environment variables and the flags of `cat-serve serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cat_serve.errors import InvalidInput

ENV_PREFIX = "CAT_SERVE_"


class RepositorySettings(BaseSettings):
    """Which models there are; what every command that reads them needs."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        protected_namespaces=(),
    )

    model_repository: Path | None = Field(
        None, description="folder <model>/<version>/; by default the one that came with the package"
    )
    model: str | None = Field(
        None, description="the default model; if not set, the only one, or fashion-32"
    )


class Settings(RepositorySettings):
    """Settings of `cat-serve serve`. A flag wins over its environment variable."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for any free one")
    backend: Literal["onnxruntime", "torch"] = Field("onnxruntime", description="engine")
    provider: Literal["cpu", "cuda", "tensorrt"] = Field(
        "cpu", description="where ONNX Runtime computes; never changed silently"
    )
    precision: Literal["fp32", "fp16"] = Field(
        "fp32", description="which graph of a model is run; one that a model lacks is an error"
    )
    checkpoints: Path | None = Field(
        None, description="folder of <model>.safetensors, for the torch backend"
    )
    threads: int = Field(0, ge=0, description="threads of one forward pass; 0: the engine decides")
    concurrency: int = Field(2, ge=1, description="forward passes at the same time")
    max_images_per_request: int = Field(
        64, ge=1, description="largest n of a request; a larger one gets 422"
    )
    max_queued_images: int = Field(
        256, ge=1, description="images of one model that may wait; a request beyond that gets 429"
    )
    max_batch: int = Field(
        16, ge=1, description="images in one forward pass; the model's own limit holds too"
    )
    batch_delay_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="milliseconds that a forward pass that is not full waits for more images",
    )
    shutdown_delay_s: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds to go on serving after SIGTERM while /readyz says 503 already",
    )
    shutdown_grace_s: int = Field(
        30, ge=0, description="seconds that requests in flight have to finish"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what is logged to stderr"
    )

    @field_validator("max_queued_images")
    @classmethod
    def _holds_the_largest_request(cls, value: int, info: ValidationInfo) -> int:
        largest = info.data.get("max_images_per_request", 0)
        if value < largest:
            raise ValueError(f"it must be at least max_images_per_request, which is {largest}")
        return value


def explain(error: ValidationError) -> InvalidInput:
    """Turn pydantic's complaints about settings into one error that names variable and flag."""
    lines = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0])
        flag = "--" + name.replace("_", "-")
        lines.append(
            f"{ENV_PREFIX}{name.upper()} ({flag}) is {problem['input']!r}: {problem['msg']}"
        )
    return InvalidInput("; ".join(lines) + ".", code="bad_settings", hint="cat-serve serve --help")
