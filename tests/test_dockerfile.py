"""The Dockerfile against the facts it relies on; hadolint (in `make check`) looks at its form."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from cat_serve import cli
from cat_serve.settings import Settings
from cat_serve.web.routes import router
from export.triton_server.__main__ import build_parser as triton_server_parser

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
HEAVY = {"torch", "diffusers", "onnx", "onnxscript", "tensorrt", "matplotlib", "tensorboard"}


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    word: str
    rest: str


@dataclass(frozen=True)
class Stage:
    """A stage and what it stands on: the name of another stage, or of an image."""

    base: str
    instructions: tuple[Instruction, ...]


def read_stages(text: str) -> dict[str, Stage]:
    """Split a Dockerfile into its stages by name."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: dict[str, Stage] = {}
    for part in re.split(r"^FROM ", joined, flags=re.MULTILINE)[1:]:
        head, *body = part.splitlines()
        base, _, name = head.partition(" AS ")
        instructions = (line.partition(" ") for line in body if line.strip())
        stages[name] = Stage(base, tuple(Instruction(word, rest) for word, _, rest in instructions))
    return stages


STAGES = read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def lineage(name: str) -> list[Instruction]:
    """Return the instructions that make a stage, those of the stages below it first."""
    stage = STAGES[name]
    below = lineage(stage.base) if stage.base in STAGES else []
    return [*below, *stage.instructions]


def last(name: str, word: str) -> str:
    """Return the instruction that counts where later ones replace earlier ones."""
    return [each.rest for each in lineage(name) if each.word == word][-1]


def environment(name: str) -> dict[str, str]:
    """Return the variables that ENV sets."""
    settings = [each.rest for each in lineage(name) if each.word == "ENV"]
    return dict(pair.split("=", 1) for line in settings for pair in shlex.split(line))


def copied_files() -> list[str]:
    """Return what any stage copies from this checkout."""
    copies = [
        each.rest.split() for stage in STAGES.values() for each in stage.instructions
        if each.word in ("COPY", "ADD")
    ]  # fmt: skip
    return [name for words in copies if not words[0].startswith("--from=") for name in words[:-1]]


def extras_installed(name: str) -> set[str]:
    """Return the extras of this package that a stage installs."""
    runs = [
        each.rest for each in lineage(name) if each.word == "RUN" and "pip install" in each.rest
    ]
    return {extra for line in runs for group in re.findall(r"\[([a-z0-9,-]+)\]", line)
            for extra in group.split(",")}  # fmt: skip


def requirements_of(extras: set[str]) -> set[str]:
    """Return what this package declares for these extras, those that name other extras resolved."""
    found: set[str] = set()
    for line in PROJECT["dependencies"] + [each for extra in extras for each in EXTRAS[extra]]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found |= requirements_of(set(requirement.extras))
        else:
            found.add(line)
    return found


def closure(lines: set[str]) -> set[str]:
    """Return the names of all packages that requirements lead to, by what is installed here."""
    names: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        names.add(name)
        for line in metadata.requires(name) or []:
            further = Requirement(line)
            marker = further.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras or {""}):
                waiting.append(further)
    return names


def test_the_last_stage_is_the_service() -> None:
    assert list(STAGES)[-1] == "serve"
    assert {"serve", "train", "triton"} <= set(STAGES)


def test_every_copied_file_exists_and_reaches_the_builder() -> None:
    names = copied_files()
    assert {"pyproject.toml", "constraints.txt", "model_repository"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []
    excluded, *admitted = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert excluded == "*"
    assert [name for name in names if f"!{name}" not in admitted] == []


def test_what_the_wheel_is_made_of_is_copied() -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = hatch["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], PROJECT["readme"]]
    needed += PROJECT["license-files"]
    assert set(needed) <= set(copied_files())


def test_copies_between_stages_name_earlier_stages() -> None:
    order = list(STAGES)
    for name, stage in STAGES.items():
        for each in stage.instructions:
            source = re.match(r"--from=(\S+)", each.rest) if each.word == "COPY" else None
            assert source is None or source[1] in order[: order.index(name)]


def test_installs_name_extras_that_exist_and_are_constrained() -> None:
    assert extras_installed("serve") == {"cpu", "triton"}
    assert extras_installed("triton") == {"cpu"}
    assert {"train", "export"} <= extras_installed("train") <= set(EXTRAS)
    for stage in STAGES.values():
        for each in stage.instructions:
            if "pip install" in each.rest:
                assert "--constraint constraints.txt" in each.rest


def test_no_image_gets_both_builds_of_onnxruntime() -> None:
    for name in ("serve", "train", "triton"):
        assert not {"cpu", "gpu"} <= extras_installed(name)


def test_service_leads_to_no_heavy_package() -> None:
    names = closure(requirements_of(extras_installed("serve")))
    assert {"onnxruntime", "uvicorn", "starlette", "pydantic-core"} <= names  # it was followed
    assert names & HEAVY == set()
    assert closure(requirements_of({"train"})) >= {"torch", "diffusers"}


@pytest.mark.parametrize("name", ["serve", "train", "triton"])
def test_images_do_not_run_as_root(name: str) -> None:
    user = last(name, "USER")
    assert user.isdigit()
    assert int(user) > 0
    created = [each.rest for each in lineage(name) if "useradd" in each.rest]
    assert any(f"--uid {user} " in line for line in created)


def python_of(image: str) -> str:
    """Return the version of Python in an image; the releases of Triton stand in the table of docs/triton.md."""
    if python := re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", image):
        return python[1]
    triton = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d\d\.\d\d)-py3", image)
    assert triton is not None, f"{image} does not say its version of Python"
    table = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(triton[1])} .*$", table, re.MULTILINE)
    assert row is not None, f"docs/triton.md has no row for Triton {triton[1]}"
    python = re.search(r"\b3\.\d\d\b", row[0])
    assert python is not None
    return python[0]


@pytest.mark.parametrize("name", list(STAGES))
def test_base_image_is_a_python_that_this_package_takes(name: str) -> None:
    base = name
    while base in STAGES:
        base = STAGES[base].base
    python = python_of(base)
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_service_runs_a_command_of_the_command_line() -> None:
    command, *arguments = json.loads(last("serve", "CMD"))
    assert command in PROJECT["scripts"]
    settings = cli.read_settings(cli.build_parser().parse_args(arguments))
    assert isinstance(settings, Settings)


def test_training_image_shows_a_command_that_exists() -> None:
    python, flag, module, *arguments = json.loads(last("train", "CMD"))
    assert (python, flag, arguments) == ("python", "-m", ["--help"])
    assert find_spec(module) is not None


def test_triton_image_starts_the_server_on_the_models_it_holds() -> None:
    python, flag, module, *arguments = json.loads(last("triton", "CMD"))
    assert (python, flag, module) == ("python3", "-m", "export.triton_server")
    parsed = triton_server_parser().parse_args(arguments)
    assert parsed.host == "0.0.0.0"  # in a container, loopback would be out of reach
    copied = [each.rest.split() for each in STAGES["triton"].instructions if each.word == "COPY"]
    assert ["model_repository", str(parsed.repository)] in copied
    ports = [parsed.http_port, parsed.grpc_port, parsed.metrics_port]
    exposed = [each.rest for each in STAGES["triton"].instructions if each.word == "EXPOSE"]
    assert exposed == [str(port) for port in ports]
    assert f"127.0.0.1:{parsed.http_port}/v2/health/ready" in last("triton", "HEALTHCHECK")


def test_triton_image_has_the_numpy_that_its_python_backend_keeps_whole() -> None:
    (install,) = (e.rest for e in STAGES["triton"].instructions if "pip install" in e.rest)
    assert "'numpy<2'" in install
    assert "sed -i '/^numpy==/d' constraints.txt" in install


def test_environment_of_the_service_is_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {k: v for k, v in environment("serve").items() if k.startswith("CAT_SERVE_")}
    assert {name.removeprefix("CAT_SERVE_").lower() for name in given} <= set(Settings.model_fields)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings().host == "0.0.0.0"  # in a container, loopback would be out of reach
    assert str(Settings().port) == last("serve", "EXPOSE")


def test_health_check_asks_a_route_that_exists_on_the_port() -> None:
    check = last("serve", "HEALTHCHECK")
    python, flag, code = json.loads(check.partition("CMD ")[2])
    assert (python, flag) == ("python", "-c")
    strings = [n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)]
    (address,) = (urlsplit(s) for s in strings if isinstance(s, str) and "://" in s)
    assert address.hostname == "127.0.0.1"
    assert str(address.port) == last("serve", "EXPOSE")
    assert address.path in {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert float(re.search(r"--timeout=(\d+)s", check)[1]) >= 3  # type: ignore[index]
