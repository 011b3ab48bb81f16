"""Build the wheel, install it in a clean environment in another folder, and ask it for an image.

    python .ci/check_wheel.py

What is shown: the wheel needs nothing of this checkout, its serving extra does not bring torch, every command
answers --help without the heavy packages, and the server finds the model inside the wheel. Each check is one
line on stderr; the last line of stdout counts them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "diffusers", "onnx", "onnxscript", "tensorrt", "matplotlib")
HELP_S = 60.0
READY_S = 120.0
STOP_S = 40.0
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class CheckFailed(Exception):
    """The wheel does not do what it promises."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise CheckFailed(what)


class Installation:
    """The wheel in a virtual environment of its own; commands run in an empty folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CAT_SERVE_", "PYTHON", "VIRTUAL_ENV"))
        }

    def make(self) -> None:
        """Build the wheel and install it with what serving on a CPU needs, as the constraints pin it."""
        self.wheel = build(self.elsewhere.parent / "dist")
        run(sys.executable, "-m", "venv", str(self.bin.parent))
        run(
            *(str(self.bin / "python"), "-m", "pip", "install", "--quiet"),
            *("--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")),
            f"{self.wheel}[cpu]",
        )

    def output(self, command: str, *arguments: str) -> str:
        """Run an installed command and return its stdout."""
        return run(
            str(self.bin / command),
            *arguments,
            cwd=self.elsewhere,
            env=self.environment,
            timeout=HELP_S,
        )

    def commands(self) -> list[str]:
        """Return every module of the wheel that is a `python -m` command of training or export."""
        with zipfile.ZipFile(self.wheel) as archive:
            modules = [
                name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
                for name in archive.namelist()
                if re.fullmatch(r"(training|export)/([a-z_]+/)?[a-z_]+\.py", name)
                and b"def build_parser(" in archive.read(name)
            ]
        return sorted(modules)


def run(*command: str, **options: object) -> str:
    """Run a command to its end and return its stdout.

    Raises:
        CheckFailed: it failed or took too long; shows what it said.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"{' '.join(command)} took more than {error.timeout} s") from error
    require(
        done.returncode == 0,
        f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}",
    )
    return str(done.stdout)


def build(folder: Path) -> Path:
    """Build the wheel with the backend of this environment and return its path."""
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)),
        str(ROOT),
    )
    (wheel,) = folder.glob("cat_serve-*.whl")
    return wheel


# --- the checks ------------------------------------------------------------------------------


def check_code_comes_from_the_wheel(installed: Installation) -> None:
    code = "import cat_serve, training, export\nfor m in (cat_serve, training, export): print(m.__file__)"
    for path in installed.output("python", "-c", code).splitlines():
        require(
            Path(path).is_relative_to(installed.bin.parent), f"{path} is not from the environment"
        )


def check_heavy_packages_are_absent(installed: Installation) -> None:
    code = (
        "import importlib.util\n"
        f"print(*(name for name in {HEAVY} if importlib.util.find_spec(name)))"
    )
    found = installed.output("python", "-c", code).split()
    require(not found, f"'cat-serve[cpu]' brings {', '.join(found)}")


def check_every_command_answers_help(installed: Installation) -> None:
    require("serve" in installed.output("cat-serve", "--help"), "cat-serve --help names no serve")
    commands = installed.commands()
    require(
        {"training.train", "export.onnx", "export.trt"} <= set(commands),
        f"the wheel has only {commands}",
    )
    for module in commands:
        shown = installed.output("python", "-m", module, "--help")
        require(
            shown.startswith(f"usage: python -m {module}"),
            f"{module} --help printed {shown[:80]!r}",
        )


def check_shipped_models_are_found(installed: Installation) -> None:
    shown = {line.split("\t")[0] for line in installed.output("cat-serve", "models").splitlines()}
    shipped = {path.parent.parent.name for path in ROOT.glob("model_repository/*/*/manifest.json")}
    require(bool(shipped), "this checkout has no model")
    require(shipped <= shown, f"cat-serve models shows {sorted(shown)}, not {sorted(shipped)}")


def check_server_answers_with_an_image(installed: Installation) -> None:
    with server(installed) as address:
        with urllib.request.urlopen(f"{address}/models", timeout=HELP_S) as answer:
            sizes = {
                model["name"]: tuple(reversed(model["image_size"]))
                for model in json.load(answer)["models"]
            }
        asked = urllib.request.Request(f"{address}/generate?class=0&seed=1", method="POST")
        with urllib.request.urlopen(asked, timeout=HELP_S) as answer:
            png, model = answer.read(), answer.headers["X-Model"].partition("@")[0]
            media_type = answer.headers["Content-Type"]
        require(media_type == "image/png", f"POST /generate answered {media_type}")
        require(png.startswith(PNG_SIGNATURE), f"POST /generate began with {png[:8]!r}")
        size = struct.unpack(">II", png[16:24])
        require(size == sizes[model], f"the image is {size}, {model} makes {sizes[model]}")


def check_server_shows_its_pages(installed: Installation) -> None:
    with server(installed) as address:
        for page in ("/", "/docs"):
            with urllib.request.urlopen(address + page, timeout=HELP_S) as answer:
                html = answer.read().decode()
            require("<html" in html.lower(), f"{page} is no page")
            for asset in re.findall(r'(?:src|href)="([^"#]+)"', html):
                with urllib.request.urlopen(
                    urllib.parse.urljoin(address + page, asset), timeout=HELP_S
                ) as answer:
                    require(bool(answer.read()), f"{asset}, named by {page}, is empty")


@contextmanager
def server(installed: Installation) -> Iterator[str]:
    """Run the installed server until it is ready; end it by its id and require a clean exit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    log = installed.elsewhere / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(installed.bin / "cat-serve"), "serve", "--port", str(port)],
            cwd=installed.elsewhere,
            env=installed.environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(process, address, log)
        yield address
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"the server was still there {STOP_S} s after SIGTERM") from error
        require(code == 0, f"after SIGTERM the server ended with {code}\n{log.read_text()}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        require(process.poll() is None, f"the server left\n{log.read_text()}")
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except OSError:  # not listening yet, or 503
            time.sleep(0.1)
    raise CheckFailed(f"the server was not ready after {READY_S} s\n{log.read_text()}")


CHECKS: tuple[Callable[[Installation], None], ...] = (
    check_code_comes_from_the_wheel,
    check_heavy_packages_are_absent,
    check_every_command_answers_help,
    check_shipped_models_are_found,
    check_server_answers_with_an_image,
    check_server_shows_its_pages,
)


def attempt(name: str, work: Callable[[], object]) -> bool:
    """Do the work, say how it went, and return whether it went well."""
    try:
        work()
    except (CheckFailed, OSError) as error:  # OSError: no answer, or an answer that is an error
        print(f"FAILED  {name}: {error}", file=sys.stderr)
        return False
    print(f"ok      {name}", file=sys.stderr)
    return True


def main() -> int:
    results = []
    with tempfile.TemporaryDirectory(prefix="cat-serve-wheel-") as folder:
        installed = Installation(Path(folder))
        results.append(attempt("builds and installs", installed.make))
        for check in CHECKS if results[0] else ():
            name = check.__name__.removeprefix("check_").replace("_", " ")
            results.append(attempt(name, lambda check=check: check(installed)))
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
