"""Every link leads somewhere, and every command in the documents is one that exists and takes what it is given.

Commands are taken from the documents and parsed by the parsers they belong to; none is run.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import pytest
from packaging.requirements import Requirement

from cat_serve import __version__, cli
from cat_serve.errors import CatServeError
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from export.trt.cache import CACHE_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "model_repository" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Where the parser of each command is: `python -m export.trt` runs export/trt/__main__.py.
COMMAND_MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"): path
    for folder in ("training", "export")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "def build_parser(" in path.read_text(encoding="utf-8")
}
SHELL_LANGUAGES = {"", "sh", "bash", "console"}
SHELL_COMMANDS = {
    "apt-get", "cd", "cp", "git", "kill", "ls", "mkdir", "mv", "npm", "sudo", "tar", "tensorboard",
}  # fmt: skip
PAGES_OUTSIDE_OPENAPI = {"/", "/docs", "/openapi.json", "/config"}
OF_THE_ADMIN_PORT = {("POST", "/reload")}
OPERATORS = set("&|;<>")

each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


class NotACommand(Exception):
    """A command in a document does not exist, or does not take what it is given."""


# --- reading ---------------------------------------------------------------------------------


def fences(text: str) -> list[tuple[str, str]]:
    """Return language and content of every fenced block."""
    return re.findall(r"^ *```([a-z]*)[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    """Return what stands between single backticks outside of fenced blocks."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands_of(script: str) -> Iterator[list[str]]:
    """Split shell text into the words of its commands; comments and redirections are left out."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="".join(OPERATORS))
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        skip = False
        for token in lexer:
            if skip:
                skip = False
            elif set(token) <= OPERATORS and ("<" in token or ">" in token):
                skip = True
            elif set(token) <= OPERATORS:
                yield words
                words = []
            else:
                words.append(token)
        if words:
            yield words


# --- checking --------------------------------------------------------------------------------


def check(words: list[str]) -> None:
    """Check one command.

    Raises:
        NotACommand: says what is wrong with it.
    """
    while re.match(r"[A-Z_]+=", words[0]):
        check_variable(words[0].partition("=")[0])
        words = words[1:]
    command, *arguments = words
    name = Path(command).name
    checks = {
        "make": check_make, "python": check_python, "cat-serve": check_cat_serve,
        "pip": check_pip, "docker": check_docker, "curl": check_curl, "hf": check_hf,
        "torchrun": check_launched, "accelerate": check_launched,
    }  # fmt: skip
    if name in checks:
        checks[name](arguments)
    elif name not in SHELL_COMMANDS:
        raise NotACommand(f"{name} is unknown; a block that is no shell script needs its language")


def check_variable(name: str) -> None:
    setting = name.removeprefix("CAT_SERVE_").lower()
    known = setting in Settings.model_fields or name == CACHE_VARIABLE
    if name.startswith("CAT_SERVE_") and not known:
        raise NotACommand(f"{name} is no setting")


def check_make(arguments: list[str]) -> None:
    for argument in arguments:
        variable, assigned, _ = argument.partition("=")
        pattern = rf"^{variable}\s*[?:]?=" if assigned else rf"^{argument}:"
        if not re.search(pattern, MAKEFILE, re.MULTILINE):
            raise NotACommand(f"the Makefile has no {argument}")


def check_hf(arguments: list[str]) -> None:
    """Check a command of the hub's client by its own parser; nothing is downloaded."""
    from click import ClickException, Context
    from huggingface_hub.cli.hf import app

    try:
        name, command, rest = app.resolve_command(Context(app), arguments)
        assert command is not None
        command.make_context(name, rest)
    except ClickException as error:
        raise NotACommand(f"hf: {error.format_message()}") from error


def check_launched(arguments: list[str]) -> None:
    """Check what torchrun or accelerate starts: `[ITS FLAGS] -m MODULE ...`."""
    if "-m" not in arguments:
        raise NotACommand("no -m MODULE to start")
    check_python(arguments[arguments.index("-m") :])


def check_python(arguments: list[str]) -> None:
    if re.fullmatch(r"examples/\w+\.py", arguments[0]):
        parse(parser_of_example(arguments[0]), arguments[1:])
        return
    if arguments[:1] != ["-m"]:
        raise NotACommand("modules are run with python -m")
    parser = parser_of(arguments[1])
    if parser is not None:
        parse(parser, arguments[2:])


def parser_of_example(path: str) -> argparse.ArgumentParser:
    """Return the parser of a script that users copy."""
    if not (ROOT / path).is_file():
        raise NotACommand(f"there is no {path}")
    parser: argparse.ArgumentParser = runpy.run_path(str(ROOT / path))["build_parser"]()
    return parser


def parser_of(name: str) -> argparse.ArgumentParser | None:
    """Return the parser of a module of this project; None for a module of another."""
    if find_spec(name.partition(".")[0]) is None or find_spec(name) is None:
        raise NotACommand(f"there is no module {name}")
    if name.partition(".")[0] not in ("training", "export"):
        return None
    if name not in COMMAND_MODULES:
        raise NotACommand(f"{name} is no command")
    parser: argparse.ArgumentParser = command_module(name).build_parser()
    return parser


def command_module(name: str) -> ModuleType:
    """Return the module that holds a command's parser."""
    inside = COMMAND_MODULES[name].stem == "__main__"
    return importlib.import_module(f"{name}.__main__" if inside else name)


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace | None:
    """Parse; None if the arguments ask for help or the version."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            return parser.parse_args(arguments)
    except SystemExit as leaving:
        if leaving.code != 0:
            raise NotACommand(said.getvalue()) from leaving
        return None


def check_cat_serve(arguments: list[str]) -> None:
    parsed = parse(cli.build_parser(), arguments)
    if parsed is not None and "settings" in parsed:
        try:
            cli.read_settings(parsed)
        except CatServeError as error:
            raise NotACommand(str(error)) from error


def check_pip(arguments: list[str]) -> None:
    for argument in arguments:
        wheel = re.match(r"dist/cat_serve-(.+)-py3-none-any\.whl", argument)
        if wheel and wheel[1] != __version__:
            raise NotACommand(f"make wheel writes version {__version__}, not {wheel[1]}")
        for group in re.findall(r"\[([^\]]*)\]", argument):
            for extra in group.split(","):
                if extra not in PROJECT["optional-dependencies"]:
                    raise NotACommand(f"there is no extra {extra!r}")


def check_docker(arguments: list[str]) -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    images = re.findall(r"^#.*docker build .*-t (\S+)", DOCKERFILE, re.MULTILINE)
    word, *rest = arguments
    if word == "build":
        for flag, value in pairwise(rest):
            if flag == "--target" and value not in stages:
                raise NotACommand(f"the Dockerfile has no stage {value!r}")
            if flag == "-t" and value not in images:
                raise NotACommand(f"the Dockerfile names no image {value!r}")
    elif word == "run":
        image = next((i for i, each in enumerate(rest) if each in images), None)
        if image is None:
            raise NotACommand(f"docker run names none of {images}")
        for flag, value in pairwise(rest[:image]):
            if flag == "-p" and value.rpartition(":")[2] not in ports_of(rest[image]):
                raise NotACommand(f"the Dockerfile does not expose the port of {value}")
            if flag == "-e":
                check_variable(value.partition("=")[0])
        if rest[image + 1 :]:
            check(rest[image + 1 :])
    else:
        raise NotACommand(f"docker {word} is unknown here")


def ports_of(image: str) -> list[str]:
    """Return the ports that an image's stage exposes; one that is built without a target is the last stage."""
    target = re.search(rf"^#.*docker build --target (\S+) -t {image} ", DOCKERFILE, re.MULTILINE)
    stages = re.split(r"^FROM \S+ AS ", DOCKERFILE, flags=re.MULTILINE)[1:]
    own = next((s for s in stages if target and s.startswith(f"{target[1]}\n")), stages[-1])
    return re.findall(r"^EXPOSE (\d+)$", own, re.MULTILINE)


@cache
def operations() -> dict[tuple[str, str], set[str]]:
    """Return the query parameters of every method and path that the server answers."""
    found: dict[tuple[str, str], set[str]] = {
        route: set()
        for route in {("GET", page) for page in PAGES_OUTSIDE_OPENAPI} | OF_THE_ADMIN_PORT
    }
    for path, methods in create_app(Settings()).openapi()["paths"].items():
        for method, operation in methods.items():
            declared = operation.get("parameters", [])
            found[method.upper(), path] = {p["name"] for p in declared if p["in"] == "query"}
    return found


def check_curl(arguments: list[str]) -> None:
    method = "POST" if {"-d", "--data", "--json"} & set(arguments) else "GET"
    for flag, value in pairwise(arguments):
        method = value if flag == "-X" else method
    for argument in arguments:
        if not re.match(r"(http://)?(localhost|127\.0\.0\.1):\d+", argument):
            continue
        address = urlsplit(argument if "://" in argument else f"http://{argument}")
        for (known_method, path), parameters in operations().items():
            pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path))
            if known_method == method and re.fullmatch(pattern, address.path or "/"):
                unknown = parse_qs(address.query).keys() - parameters
                if unknown:
                    raise NotACommand(f"{path} takes no {', '.join(sorted(unknown))}")
                break
        else:
            raise NotACommand(f"the server has no {method} {address.path}")


def check_inline(code: str) -> None:
    """Check a command in running text, whose values may be placeholders: names and flags only."""
    words = code.split()
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "make":
        check_make([word for word in words[1:] if re.match(r"[a-z]|[A-Z]+=", word)])
        return
    if words[0] == "python" and len(words) > 2:
        parser = parser_of(words[2])
    elif words[0] == "cat-serve":
        (subcommands,) = (a for a in cli.build_parser()._actions if isinstance(a.choices, dict))
        parser = subcommands.choices.get(words[1])  # type: ignore[union-attr]
        if parser is None and not words[1].startswith("--"):
            raise NotACommand(f"cat-serve has no command {words[1]}")
    else:
        return
    if parser is not None and not flags <= parser._option_string_actions.keys():
        raise NotACommand(f"{code} has flags that do not exist")


def complaints(commands: Iterator[list[str]] | list[list[str]]) -> list[str]:
    found = []
    for words in commands:
        try:
            check(words)
        except NotACommand as error:
            found.append(f"{shlex.join(words)}: {error}")
    return found


# --- the documents ---------------------------------------------------------------------------


def slug(heading: str) -> str:
    """Return the anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@each_document
def test_links_and_images_lead_to_something(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    missing = []
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = path.parent / target if target else path
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor else []
        if not file.exists() or (anchor and anchor not in map(slug, headings)):
            missing.append(link)
    assert missing == []


@each_document
def test_fenced_commands_exist_and_take_what_they_are_given(path: Path) -> None:
    for language, content in fences(path.read_text(encoding="utf-8")):
        if language in SHELL_LANGUAGES:
            assert complaints(commands_of(content)) == []


@each_document
def test_fenced_python_and_json_can_be_read(path: Path) -> None:
    for language, content in fences(path.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(content)
        if language == "json":
            json.loads(content)


@each_document
def test_commands_in_running_text_exist_and_have_those_flags(path: Path) -> None:
    for code in inline_code(path.read_text(encoding="utf-8")):
        if re.match(r"make [a-zA-Z]|python -m \w|cat-serve [a-z-]", code):
            check_inline(code)


@each_document
def test_settings_and_extras_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\bCAT_SERVE_[A-Z_]+[A-Z]\b", text):
        check_variable(name)
    for code in inline_code(text):
        if code.startswith("pip "):
            check_pip(shlex.split(code))


@each_document
def test_files_of_this_project_that_are_named_exist(path: Path) -> None:
    folders = "cat_serve|training|export|tests|docs|model_repository|checkpoints|benchmarks|deploy|examples"
    pattern = rf"(?:(?:{folders}|\.ci|\.github)/[\w./-]*|[A-Z]\w+\.md)"
    named = [
        code for code in inline_code(path.read_text(encoding="utf-8"))
        if re.fullmatch(pattern, code) and code.count("/") < 5
    ]  # fmt: skip
    assert [code for code in named if not (ROOT / code).exists()] == []


@pytest.mark.parametrize("module", COMMAND_MODULES)
def test_examples_in_the_help_of_a_command_can_be_parsed(module: str) -> None:
    shown = (command_module(module).__doc__ or "").replace("\\\n", " ")
    examples = [line for line in shown.splitlines() if re.match(r" +(python -m|cat-serve) ", line)]
    assert complaints([words for line in examples for words in commands_of(line)]) == []


def test_every_command_is_documented() -> None:
    text = " ".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [module for module in COMMAND_MODULES if module not in text] == []


# --- the test itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "make trian",
        "make train MODLE=fashion-32",
        "hf download a/b --lcal-dir weights",
        "hf downlod a/b",
        "python -m training.trian --out here",
        "python -m training.train_vae --ot here",
        "python -m training.train_vae --out here --total-nimg many",
        "python -m training.losses",
        "torchrun --nproc-per-node 8 -m training.train --preset folder --dta here",
        "accelerate launch training/train.py",
        "python training/train.py",
        "python examples/client.py --class bag",
        "python examples/grpc_client.py --klass bag",
        "cat-serve srve",
        "cat-serve serve --prot 1",
        "cat-serve serve --port 99999",
        "CAT_SERVE_PROT=1 cat-serve serve",
        "pip install '.[cqu]'",
        "pip install dist/cat_serve-0.0.0-py3-none-any.whl",
        "docker build --target trian .",
        "docker run -p 8000:8001 cat-serve",
        "docker run cat-serve-train python -m training.trian",
        "curl localhost:8000/generates?class=7",
        "curl -X POST 'localhost:8000/generate?klass=7'",
        "mkdir here && make trian",
        "frobnicate",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    assert len(complaints(commands_of(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "make serve  # and a comment with make trian",
        "make train MODEL=fashion-32",
        "hf download a/b file.pth --local-dir weights",
        "python -m training.train_vae --help > help.txt",
        "python -m pytest -k 'anything'",
        "CAT_SERVE_PORT=9000 .venv/bin/cat-serve serve --threads 1 | cat-serve --version",
        "pip install 'cat-serve[cpu]' '.[train,export]'",
        "curl -X POST 'localhost:8000/generate?class=7&seed=1' -o a.png && curl localhost:8000/readyz",
        "docker run --rm -p 127.0.0.1:9000:8000 cat-serve",
    ],
)
def test_a_right_command_is_accepted(line: str) -> None:
    assert complaints(commands_of(line)) == []


def test_extras_that_name_extras_of_this_project_name_real_ones() -> None:
    extras = PROJECT["optional-dependencies"]
    named = [Requirement(line) for lines in extras.values() for line in lines]
    inner = {extra for each in named if each.name == PROJECT["name"] for extra in each.extras}
    assert inner <= set(extras)
