"""Settings of the server: one declaration gives the environment variables and the flags of `cat-serve serve`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, CliSuppress, NoDecode, SettingsConfigDict

from cat_serve.errors import InvalidInput

ENV_PREFIX = "CAT_SERVE_"
MAX_DEADLINE_MS = 3_600_000
SECRETS = frozenset({"api_keys"})

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


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

    _flags: frozenset[str] = PrivateAttr(frozenset())

    def came_by_flag(self, names: Iterable[str]) -> None:
        """Note which settings were flags."""
        self._flags = frozenset(names)

    def source_of(self, name: str) -> str:
        """Return where a setting comes from: `flag`, `environment` or `default`."""
        if name in self._flags:
            return "flag"
        return "environment" if name in self.model_fields_set else "default"


class Settings(RepositorySettings):
    """Settings of `cat-serve serve`. A flag wins over its environment variable."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for any free one")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="HTTP processes; more than one share an engine process with the queue and the budgets",
    )
    backend: Literal["onnxruntime", "torch", "triton"] = Field(
        "onnxruntime", description="engine; triton: other servers compute, see --triton-url"
    )
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
    max_frames_per_request: int = Field(
        240, ge=2, description="largest number of frames of /interpolate; a larger one gets 422"
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
    deadline_ms: int = Field(
        0,
        ge=0,
        le=MAX_DEADLINE_MS,
        description="milliseconds that a request has which names no X-Deadline-Ms; then it gets 504; 0: no limit",
    )
    triton_url: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validate_default=True,
        description="host:port of a Triton server's gRPC; once for each server, or separated by commas",
    )
    triton_balance: Literal["least-loaded", "round-robin"] = Field(
        "least-loaded", description="which Triton server gets a call"
    )
    triton_concurrency: int = Field(
        64, ge=1, description="calls to Triton servers at the same time; instead of --concurrency"
    )
    triton_attempt_ms: float = Field(
        30_000.0,
        ge=1,
        allow_inf_nan=False,
        description="milliseconds after which a Triton server's answer is given up and asked of another",
    )
    triton_stall_ms: float = Field(
        2_000.0,
        ge=1,
        allow_inf_nan=False,
        description="milliseconds in which a Triton server must at least say that it is alive",
    )
    request_timeout_s: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds in which the head of a request must arrive, and as many for its body",
    )
    stall_timeout_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which an answer is broken off of which a client takes nothing",
    )
    keep_alive_s: int = Field(
        75, ge=0, description="seconds that a connection stays open after an answer"
    )
    max_connections: int = Field(
        2048, ge=1, description="connections at once; beyond it idle ones are closed, then 429"
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
    log_format: Literal["text", "json"] = Field(
        "text", description="lines for people, or one JSON object each"
    )
    api_keys_file: Path | None = Field(
        None,
        description="TOML file of names and API keys; with keys, /generate and most others want one",
    )
    # Everybody on the machine can read the flags of a process.
    api_keys: CliSuppress[SecretStr | None] = Field(
        None, description="more keys, as name=key,name=key; only as an environment variable"
    )
    key_images_per_minute: int = Field(
        0, ge=0, description="images a minute for a key that has no number of its own; 0: no limit"
    )
    key_queued_images: int = Field(
        0,
        ge=0,
        description="images that may wait for a key without a number of its own; 0: no limit",
    )
    admin_host: str = Field("127.0.0.1", description="address of the admin port")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="a second port for /metrics, /healthz, /readyz and /config; then /metrics is only there",
    )

    @field_validator("triton_url", mode="before")
    @classmethod
    def _list_of_urls(cls, value: Any) -> Any:
        """Take a JSON list, as environment variables have it, or commas."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)  # what is no JSON is a ValueError, as pydantic wants it
            except RecursionError as error:
                raise ValueError("it has too many brackets") from error
        return [url.strip() for url in value.split(",")]

    @field_validator("triton_url")
    @classmethod
    def _urls_of_the_triton_backend(
        cls, value: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        for url in value:
            match = _HOST_AND_PORT.fullmatch(url)
            if match is None or not 0 < int(match[2]) < 2**16:
                raise ValueError(f"{url!r} is not host:port, as in 10.0.0.5:8001")
        if len(set(value)) < len(value):
            raise ValueError("a server is named twice")
        backend = info.data.get("backend")
        if backend == "triton" and not value:
            raise ValueError("the backend triton needs the host:port of at least one server")
        if value and backend not in ("triton", None):  # None: the backend itself is wrong
            raise ValueError(f"it needs --backend triton, and the backend is {backend}")
        return value

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
        shown = "not shown" if name in SECRETS else repr(problem["input"])
        lines.append(f"{ENV_PREFIX}{name.upper()} ({flag}) is {shown}: {problem['msg']}")
    return InvalidInput("; ".join(lines) + ".", code="bad_settings", hint="cat-serve serve --help")
