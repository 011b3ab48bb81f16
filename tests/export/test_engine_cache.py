"""The cache of engines: an engine is used for exactly the key it was built for, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cat_serve.errors import ArtefactError, InvalidInput
from export.trt.cache import EngineCache, Entry, default_cache
from export.trt.device import Gpu
from export.trt.options import BuildOptions, Profile
from export.trt.record import (
    GraphFacts,
    engine_key,
    key_sha256,
    read_graph,
    read_record,
    record_path,
    require_fit,
    source_of,
)

FACTS = GraphFacts("a" * 64, {"weights": "b" * 64}, "fp16")
OPTIONS = BuildOptions()
GPU = Gpu("NVIDIA L4", "8.9", 2**34, "13.0")
PLATFORM = "linux-x86_64"
KEY = engine_key(FACTS, OPTIONS, "10.13.3.9", GPU, PLATFORM)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def entry(cache: EngineCache) -> Entry:
    return cache.add(KEY, b"an engine", {"source": {"graph": "model.onnx"}})


# --- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        engine_key(replace(FACTS, sha256="c" * 64), OPTIONS, "10.13.3.9", GPU, PLATFORM),
        engine_key(replace(FACTS, external={"weights": "c" * 64}), OPTIONS, "10.13.3.9", GPU, PLATFORM),
        engine_key(replace(FACTS, precision="fp32"), OPTIONS, "10.13.3.9", GPU, PLATFORM),
        engine_key(FACTS, replace(OPTIONS, profile=Profile(1, 8, 32)), "10.13.3.9", GPU, PLATFORM),
        engine_key(FACTS, replace(OPTIONS, workspace_bytes=1), "10.13.3.9", GPU, PLATFORM),
        engine_key(FACTS, replace(OPTIONS, hardware_compatibility="ampere+"), "10.13.3.9", GPU, PLATFORM),
        engine_key(FACTS, replace(OPTIONS, version_compatible=True), "10.13.3.9", GPU, PLATFORM),
        engine_key(FACTS, replace(OPTIONS, strip_weights=True), "10.13.3.9", GPU, PLATFORM),
        engine_key(FACTS, replace(OPTIONS, builder="tensorrt-rtx"), "10.13.3.9", GPU, PLATFORM),
        engine_key(FACTS, OPTIONS, "10.13.3.10", GPU, PLATFORM),
        engine_key(FACTS, OPTIONS, "10.13.3.9", replace(GPU, name="NVIDIA L40S"), PLATFORM),
        engine_key(FACTS, OPTIONS, "10.13.3.9", replace(GPU, compute_capability="9.0"), PLATFORM),
        engine_key(FACTS, OPTIONS, "10.13.3.9", None, PLATFORM),
        engine_key(FACTS, OPTIONS, "10.13.3.9", GPU, "linux-aarch64"),
        KEY | {"refitted": True},
    ],
)  # fmt: skip
def test_whatever_decides_an_engine_is_in_its_key(
    cache: EngineCache, entry: Entry, other: dict[str, Any]
) -> None:
    assert cache.find(KEY) is not None
    assert cache.find(other) is None


def test_compute_capabilities_are_in_the_key() -> None:
    options = [BuildOptions("tensorrt-rtx", compute_capabilities=sm) for sm in ((), ("89",))]
    keys = {key_sha256(engine_key(FACTS, each, "1.7", None, PLATFORM)) for each in options}
    assert len(keys) == 2


def test_what_does_not_decide_an_engine_is_not_in_its_key(tmp_path: Path) -> None:
    timed = replace(OPTIONS, timing_cache=tmp_path / "timing")
    more = replace(GPU, memory_bytes=1, cuda="12.0")  # other figures of the same GPU
    assert engine_key(FACTS, timed, "10.13.3.9", more, PLATFORM) == KEY


def test_graph_with_weights_beside_is_known_by_both_files(tmp_path: Path, write_graph: Any) -> None:
    graph = write_graph(tmp_path / "model.onnx", external=True)
    weights = tmp_path / "model.onnx.weights"
    before = read_graph(graph)
    assert list(before.external) == ["model.onnx.weights"]
    content = bytearray(weights.read_bytes())
    content[7] ^= 1
    weights.write_bytes(content)
    after = read_graph(graph)
    assert after.sha256 == before.sha256
    assert after.external != before.external
    weights.unlink()
    with pytest.raises(ArtefactError, match=r"needs model\.onnx\.weights beside it"):
        read_graph(graph)


@pytest.mark.parametrize(
    ("dtype", "operator", "precision"),
    [
        (TensorProto.FLOAT, "Identity", "fp32"),
        (TensorProto.FLOAT16, "Identity", "fp16"),
        (TensorProto.BFLOAT16, "Identity", "bf16"),
        (TensorProto.FLOAT16, "DequantizeLinear", "int8"),
    ],
)
def test_precision_is_read_from_the_graph(
    tmp_path: Path, dtype: int, operator: str, precision: str
) -> None:
    """The half constant lies in a node, not among the initialisers: exporters do both."""
    constant = helper.make_node("Constant", [], ["half"], value=helper.make_tensor("", dtype, [1], [1]))  # fmt: skip
    node = helper.make_node(operator, ["half"], ["out"])
    weights = numpy_helper.from_array(np.ones(1, np.float32), "full")
    graph = helper.make_graph([constant, node], "g", [], [], [weights])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert read_graph(tmp_path / "model.onnx").precision == precision


def test_shipped_graphs_have_the_precision_of_their_manifest(shipped_folder: Path) -> None:
    manifest = json.loads((shipped_folder / "manifest.json").read_text())
    for name in ("model.onnx", "model.fp16.onnx", "studio.onnx"):
        assert read_graph(shipped_folder / name).precision == manifest["files"][name]["precision"]


def test_source_names_the_model_only_if_its_manifest_is_of_this_graph(
    small_graph: Path, tmp_path: Path
) -> None:
    facts = read_graph(small_graph)
    assert source_of(small_graph, facts)["model"] == "small"
    assert source_of(small_graph, facts)["num_classes"] == 5
    alone = tmp_path / "model.onnx"
    shutil.copy2(small_graph, alone)
    assert source_of(alone, facts) == {"graph": "model.onnx", "model": None}
    shutil.copy2(small_graph.parent / "manifest.json", tmp_path)
    assert source_of(alone, replace(facts, sha256="0" * 64))["model"] is None


# --- what is never used ----------------------------------------------------------------------


def change_engine(entry: Entry) -> None:
    entry.engine.write_bytes(b"another!!")


def cut_engine(entry: Entry) -> None:
    entry.engine.write_bytes(b"an eng")


def lose_engine(entry: Entry) -> None:
    entry.engine.unlink()


def lose_record(entry: Entry) -> None:
    record_path(entry.engine).unlink()


def break_record(entry: Entry) -> None:
    record_path(entry.engine).write_text("{")


def empty_record(entry: Entry) -> None:
    record_path(entry.engine).write_text(json.dumps({"format": entry.record["format"]}))


def change_format(entry: Entry) -> None:
    entry.update(format="cat-serve-engine-0")


def change_key(entry: Entry) -> None:
    entry.update(key=KEY | {"version": "10.13.3.10"})


def foreign(entry: Entry) -> None:
    """Give it the content, engine and record, of another key."""
    other = KEY | {"version": "10.13.3.10"}
    entry.update(key=other, key_sha256=key_sha256(other))


@pytest.mark.parametrize(
    "damage",
    [change_engine, cut_engine, lose_engine, lose_record, break_record, empty_record,
     change_format, change_key, foreign],
)  # fmt: skip
def test_damaged_or_foreign_entry_is_never_used_and_can_be_replaced(
    cache: EngineCache, entry: Entry, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    damage(entry)
    assert cache.find(KEY) is None
    assert "not used" in caplog.text
    (found,) = [each for _, each in cache.entries()]
    assert isinstance(found, ArtefactError)
    cache.add(KEY, b"built again", {})
    again = cache.find(KEY)
    assert again is not None
    assert again.engine.read_bytes() == b"built again"


def test_empty_cache_has_nothing_and_says_nothing(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.find(KEY) is None
    assert list(cache.entries()) == []
    assert cache.prune(lambda entry: "everything") == {}
    assert caplog.text == ""


def test_only_the_owner_can_write_the_cache(cache: EngineCache, entry: Entry) -> None:
    assert cache.root.stat().st_mode & 0o077 == 0


# --- where, and for how long -----------------------------------------------------------------


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/cat")
    for name in ("CAT_SERVE_ENGINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_cache() == Path("/home/cat/.cache/cat-serve/engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/cat-serve/engines")
    monkeypatch.setenv("CAT_SERVE_ENGINE_CACHE", "/engines")
    assert default_cache() == Path("/engines")


def test_prune_removes_what_is_damaged_outdated_or_unused_and_keeps_the_rest(
    cache: EngineCache,
) -> None:
    names = ("good", "damaged", "outdated", "unused")
    entries = {n: cache.add(KEY | {"version": n}, n.encode(), {}) for n in names}
    change_engine(entries["damaged"])
    long_ago = time.time() - 10 * 86400
    os.utime(entries["unused"].engine, (long_ago, long_ago))
    old, fresh = cache.root / ".old.engine.1.tmp", cache.root / ".fresh.engine.2.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (long_ago, long_ago))

    def outdated(entry: Entry) -> str | None:
        return "of another version" if entry.record["key"]["version"] == "outdated" else None

    removed = cache.prune(outdated, unused_days=9)
    assert removed.keys() == {
        old.name, *(entries[n].engine.name for n in ("damaged", "outdated", "unused"))
    }  # fmt: skip
    assert removed[entries["unused"].engine.name] == "not used for 10 days"
    good = entries["good"].engine
    assert sorted(cache.root.iterdir()) == sorted([fresh, good, record_path(good)])


def test_use_keeps_an_engine_from_being_pruned(cache: EngineCache, entry: Entry) -> None:
    long_ago = time.time() - 10 * 86400
    os.utime(entry.engine, (long_ago, long_ago))
    assert cache.find(KEY) is not None
    assert cache.prune(lambda entry: None, unused_days=9) == {}


# --- what an engine fits ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "version", "gpu", "differs"),
    [
        (OPTIONS, "10.13.3.9", GPU, None),
        (OPTIONS, "10.13.3.10", GPU, "version 10.13.3.9, here 10.13.3.10"),
        (replace(OPTIONS, version_compatible=True), "11.4.1.2", GPU, None),
        (OPTIONS, "10.13.3.9", replace(GPU, name="NVIDIA L40S"), "name NVIDIA L4, here NVIDIA L40S"),
        (OPTIONS, "10.13.3.9", replace(GPU, compute_capability="9.0"), r"compute_capability 8\.9, here 9\.0"),
        (replace(OPTIONS, hardware_compatibility="same-compute-capability"), "10.13.3.9",
         replace(GPU, name="NVIDIA L40S"), None),
        (replace(OPTIONS, hardware_compatibility="same-compute-capability"), "10.13.3.9",
         replace(GPU, compute_capability="9.0"), r"8\.9, here 9\.0"),
        (replace(OPTIONS, hardware_compatibility="ampere+"), "10.13.3.9",
         replace(GPU, name="NVIDIA H100", compute_capability="9.0"), None),
        (BuildOptions("tensorrt-rtx"), "10.13.3.9", replace(GPU, name="any"), None),
    ],
)  # fmt: skip
def test_engine_fits_where_it_was_built_for(
    options: BuildOptions, version: str, gpu: Gpu, differs: str | None
) -> None:
    own = None if options.builder == "tensorrt-rtx" else GPU
    record = {"key": engine_key(FACTS, options, "10.13.3.9", own, PLATFORM)}
    if differs is None:
        require_fit(record, version, gpu, PLATFORM)
    else:
        with pytest.raises(ArtefactError, match=differs):
            require_fit(record, version, gpu, PLATFORM)
    with pytest.raises(ArtefactError, match="platform linux-x86_64, here linux-aarch64"):
        require_fit(record, version, gpu, "linux-aarch64")


def test_engine_without_weights_is_to_be_refitted_first() -> None:
    record = {"key": engine_key(FACTS, replace(OPTIONS, strip_weights=True), "10.13.3.9", GPU, PLATFORM)}  # fmt: skip
    with pytest.raises(InvalidInput, match="has no weights") as caught:
        require_fit(record, "10.13.3.9", GPU, PLATFORM)
    assert "--refit" in str(caught.value.hint)
    record["key"]["refitted"] = True
    require_fit(record, "10.13.3.9", GPU, PLATFORM)


def test_record_is_read_only_with_its_engine(entry: Entry, tmp_path: Path) -> None:
    assert read_record(entry.engine) == entry.record
    with pytest.raises(ArtefactError, match="has no record"):
        read_record(tmp_path / "none.engine")
