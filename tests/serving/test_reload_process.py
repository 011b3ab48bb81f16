"""A real server on copies of the model that ships, reloaded over and over under load."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import httpx
import pytest

from cat_serve.backends.base import EngineOptions
from cat_serve.backends.onnxruntime import open_backend
from cat_serve.golden import check_golden
from cat_serve.images import encode_png, grid
from cat_serve.manifest import GOLDEN_NAME, Artefact, load_artefact, record
from tests.serving.processes import ended, free_port, wait_ready

pytestmark = pytest.mark.slow

ROUNDS = 20
ASKERS = 4
WAIT_S = 60.0
QUERY = "class=7&seed=1&format=npy"


def write_version(shipped: Artefact, folder: Path, graph: str, number: int) -> Artefact:
    """Write a version that runs `graph` of the shipped model as its float32 graph; each number is a version of its own.

    Its golden images are its own: what the engine makes of it here.
    """
    shutil.copytree(shipped.folder, folder, ignore=shutil.ignore_patterns("__pycache__", "*.onnx"))
    for name, source in (("model.onnx", graph), ("studio.onnx", "studio.onnx")):
        (folder / name).hardlink_to(shipped.folder / source)
    manifest = shipped.manifest
    files = {name: manifest.files[name] for name in (GOLDEN_NAME, "studio.onnx")}
    files["model.onnx"] = replace(manifest.files[graph], precision="fp32")
    made_with = {"number": str(number)}
    changed = replace(manifest, files=files, made_with=made_with)
    backend = open_backend(Artefact(folder, changed, ""), EngineOptions(threads=1))
    images = backend.run(manifest.golden.batch(manifest.z_shape)).images
    backend.close()
    (folder / GOLDEN_NAME).write_bytes(encode_png(grid(images, columns=1)))
    files[GOLDEN_NAME] = record(folder / GOLDEN_NAME)
    replace(changed, files=files).save(folder)
    return load_artefact(folder)


def copy_version(source: Artefact, folder: Path, number: int) -> Artefact:
    """Write the same images as another version."""
    shutil.copytree(source.folder, folder, copy_function=lambda a, b: Path(b).hardlink_to(a))
    (folder / "manifest.json").unlink()  # what is linked must not be written to
    replace(source.manifest, made_with={"number": str(number)}).save(folder)
    return load_artefact(folder)


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    public: str
    admin: str
    log: Path

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return 1024 * int(found[1])

    def until_logged(self, text: str) -> None:
        ends_s = time.monotonic() + WAIT_S
        while text not in self.log.read_text():
            assert time.monotonic() < ends_s, self.log.read_text()
            time.sleep(0.05)


@contextmanager
def server(repository: Path, log: Path) -> Iterator[Running]:
    port, admin_port = free_port(), free_port()
    command = [sys.executable, "-m", "cat_serve", "serve", "--port", str(port),
               "--admin-port", str(admin_port), "--threads", "1", "--concurrency", "1",
               "--model-repository", str(repository)]  # fmt: skip
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    with ended(process):
        wait_ready(process, port)
        yield Running(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", log)


@dataclass
class Load:
    """Requests without a pause; what is not as the version that made it makes it is a failure."""

    address: str
    expected: dict[str, bytes]
    failures: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        askers = [threading.Thread(target=self._ask, args=(stop,)) for _ in range(ASKERS)]
        for asker in askers:
            asker.start()
        try:
            yield
        finally:
            stop.set()
            for asker in askers:
                asker.join()

    def _ask(self, stop: threading.Event) -> None:
        with httpx.Client(timeout=WAIT_S) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{self.address}/generate?{QUERY}")
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                version = answer.headers.get("x-model", "@").split("@")[1]
                self.counts[version] += 1
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                elif answer.content != self.expected[version]:
                    self.failures.append(f"not the bytes of {version}")


def test_twenty_reloads_under_load_lose_no_request_and_no_memory(
    shipped: Artefact, tmp_path: Path
) -> None:
    model = tmp_path / "models" / "fashion-32"
    kinds = [
        write_version(shipped, model / "1", "model.onnx", 1),
        write_version(shipped, model / "2", "model.fp16.onnx", 2),
    ]
    with server(tmp_path / "models", tmp_path / "log") as running:
        made = {}
        for kind in reversed(kinds):  # the newest is served first
            made[kind.folder.name] = httpx.post(f"{running.public}/generate?{QUERY}").content
            shutil.move(kind.folder, tmp_path / kind.folder.name)
            if kind is not kinds[0]:
                assert httpx.post(f"{running.admin}/reload", timeout=WAIT_S).status_code == 200
        assert made["1"] != made["2"]  # so that no answer can pass for the other version's
        shutil.copytree(tmp_path / "1", model / "1")
        kinds = [replace(kind, folder=tmp_path / kind.folder.name) for kind in kinds]
        expected = {kind.version: made[kind.folder.name] for kind in kinds}
        load = Load(running.public, expected)
        with load.running():
            time.sleep(2)
        rss_bytes = [running.rss_bytes()]
        with load.running():
            for number in range(3, 3 + ROUNDS):
                kind = kinds[number % 2]
                new = copy_version(kind, model / str(number), number)
                expected[new.version] = made[kind.folder.name]
                answer = httpx.post(f"{running.admin}/reload", timeout=WAIT_S)
                assert answer.status_code == 200, answer.text
                (told,) = answer.json()["models"]
                assert (told["outcome"], told["version"]) == ("replaced", new.version)
                rss_bytes.append(running.rss_bytes())
        assert load.failures == []
        assert len(load.counts) > ROUNDS // 2
        running.until_logged(f"closed fashion-32@{list(expected)[-2]}")
        rss_bytes.append(running.rss_bytes())
        print(f"requests {load.counts.total()}, RSS {[n >> 20 for n in rss_bytes]} MiB")
        engine_bytes = rss_bytes[1] - rss_bytes[0]  # the old one was still there beside the new
        # An engine that stayed is 38 MiB for each reload. What the allocator keeps for the threads that open engines is 32 to 35 MiB
        # in all, after 20 reloads and after 60 alike; opened 120 times by one thread they leave 3 MiB, by six in turn 25 MiB.
        first, last = (median(rss_bytes[some]) for some in (slice(1, 6), slice(ROUNDS - 4, ROUNDS + 1)))  # fmt: skip
        assert last - first < engine_bytes


def test_hangup_takes_a_good_version_and_refuses_a_damaged_one(
    shipped: Artefact, tmp_path: Path
) -> None:
    repository, log = tmp_path / "models", tmp_path / "log"
    folder = repository / "fashion-32"
    shutil.copytree(shipped.folder, folder / "1")
    with server(repository, log) as running:
        second = write_version(shipped, folder / "2", "model.fp16.onnx", 2)
        running.process.send_signal(signal.SIGHUP)
        running.until_logged(f"serving fashion-32@{second.version}, instead of {shipped.version}")
        answer = httpx.post(f"{running.public}/generate?{QUERY}")
        assert answer.headers["x-model"] == f"fashion-32@{second.version}"
        third = copy_version(second, folder / "3", 3).folder
        (third / "model.onnx").unlink()
        (third / "model.onnx").write_bytes(b"damaged")
        running.process.send_signal(signal.SIGHUP)
        running.until_logged(f"fashion-32 is not reloaded, {second.version} serves on: model.onnx")
        assert httpx.get(f"{running.public}/readyz").status_code == 200
        again = httpx.post(f"{running.public}/generate?{QUERY}")
        assert again.content == answer.content
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(WAIT_S) == 0


def test_graph_of_another_contract_or_with_other_images_is_refused(
    shipped: Artefact, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "fashion-32"
    first = write_version(shipped, folder / "1", "model.onnx", 1)
    check_golden(open_backend(first, EngineOptions(threads=1)))
    with server(tmp_path / "models", tmp_path / "log") as running:
        for number, graph, said in (
            (2, "studio.onnx", "the contract says"),
            (3, "model.fp16.onnx", "does not make its golden images"),
        ):
            version = folder / str(number)
            shutil.copytree(first.folder, version)
            (version / "model.onnx").write_bytes((shipped.folder / graph).read_bytes())
            files = {**first.manifest.files, "model.onnx": record(version / "model.onnx")}
            golden = replace(first.manifest.golden, max_levels={"fp32": 0})
            replace(first.manifest, files=files, golden=golden).save(version)
            answer = httpx.post(f"{running.admin}/reload", timeout=WAIT_S)
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (409, "reload_failed")
            assert said in problem["detail"]
            assert "export" in problem["hint"]
        answer = httpx.post(f"{running.public}/generate?{QUERY}")
        assert answer.headers["x-model"] == f"fashion-32@{first.version}"
