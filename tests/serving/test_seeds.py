"""Seeds as ranges, an explicit z, and what happens when both are given."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest

from cat_serve.errors import InvalidInput
from cat_serve.images import decode_png, grid, read_parameters
from cat_serve.latents import MAX_SEED
from cat_serve.seeds import parse_seeds, seeds_text

READ = [
    ("5", [5]),
    ("0-3", [0, 1, 2, 3]),
    ("0-2,42", [0, 1, 2, 42]),
    (" 7 , 3-4 ", [7, 3, 4]),
    ("9,8,7", [9, 8, 7]),
    (f"{MAX_SEED - 1}-{MAX_SEED}", [MAX_SEED - 1, MAX_SEED]),
]


@pytest.mark.parametrize(("text", "seeds"), READ)
def test_text_means_seeds_in_its_order(text: str, seeds: list[int]) -> None:
    assert list(parse_seeds(text, 8)) == seeds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "neither a seed nor a range"),
        ("1,", "neither a seed nor a range"),
        ("-1", "neither a seed nor a range"),
        ("1-", "neither a seed nor a range"),
        ("1-2-3", "neither a seed nor a range"),
        ("1.5", "neither a seed nor a range"),
        ("٣", "neither a seed nor a range"),
        ("3-1", "ends before it begins"),
        (f"{MAX_SEED + 1}", "is above"),
        (f"{MAX_SEED}-{MAX_SEED + 1}", "is above"),
        ("0-4294967295", "more than 8"),
        ("0-8", "more than 8"),
        ("0-6,100-101", "more than 8"),
        ("0-3,2", "2 comes twice"),
    ],
)
def test_what_is_no_seeds_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as told:
        parse_seeds(text, 8)
    assert told.value.code == "bad_seeds"


@pytest.mark.parametrize("text", ["5", "0-9", "0-9,42", "7,3-4", "3,1,2", "9,8,7", "1,3,5-6"])
def test_text_of_seeds_is_read_as_the_same(text: str) -> None:
    seeds = parse_seeds(text, 100)
    assert list(parse_seeds(seeds_text(seeds), 100)) == list(seeds)
    assert len(seeds_text(seeds)) <= len(text)


@pytest.mark.anyio
async def test_grid_of_seeds_holds_their_images_and_names_them(running: Any) -> None:
    answer = await running.client.post("/generate?class=1&seeds=7,2-3")
    alone = [
        decode_png((await running.client.post(f"/generate?class=1&seed={seed}")).content)
        for seed in (7, 2, 3)
    ]
    assert np.array_equal(decode_png(answer.content), grid(np.stack(alone)))
    assert (answer.headers["x-seed"], answer.headers["x-seeds"]) == ("7", "7,2-3")
    told = read_parameters(answer.content)
    assert told["seeds"] == "7,2-3"
    assert "n" not in told
    assert "seed" not in told
    sent = {name: told[name] for name in ("model", "class", "seeds", "truncation_psi")}
    assert (await running.client.post("/generate", json=sent)).content == answer.content


@pytest.mark.anyio
async def test_seeds_in_a_row_are_the_request_with_seed_and_n(running: Any) -> None:
    ranged = await running.client.post("/generate?class=1&seeds=3-5")
    counted = await running.client.post("/generate?class=1&seed=3&n=3")
    assert ranged.content == counted.content
    assert "x-seeds" not in ranged.headers


@pytest.mark.anyio
async def test_zip_of_seeds_has_a_file_for_each_that_says_how_it_was_made(running: Any) -> None:
    answer = await running.client.post("/generate?class=1&seeds=7,2&response=zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert list(files) == ["toy_class-1_seed-7.png", "toy_class-1_seed-2.png"]
    for seed, data in zip((7, 2), files.values(), strict=True):
        assert read_parameters(data)["seed"] == seed
        assert data == (await running.client.post(f"/generate?class=1&seed={seed}")).content


@pytest.mark.anyio
async def test_too_many_seeds_are_refused_before_any_work(run_app: Any) -> None:
    async with run_app(max_images_per_request=4) as running:
        assert (await running.client.post("/generate?class=1&seeds=0-3")).status_code == 200
        before = len(running.engine.batches)
        answer = await running.client.post("/generate?class=1&seeds=0-3,9")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "bad_seeds")
        assert "4 at most" in problem["accepted"]
        assert len(running.engine.batches) == before


Z = [0.1, -2.5, 3e-7, 0.0, 1.0, -0.3333333]


@pytest.mark.anyio
async def test_explicit_z_reaches_the_engine_and_is_named_by_its_hash(running: Any) -> None:
    answer = await running.client.post("/generate", json={"class": 1, "z": Z})
    assert answer.status_code == 200, answer.text
    wanted = np.array(Z, dtype="<f4")
    assert np.array_equal(running.engine.batches[-1].z, wanted[None])
    digest = hashlib.sha256(wanted.tobytes()).hexdigest()
    assert answer.headers["x-z-sha256"] == digest
    assert "x-seed" not in answer.headers
    assert "x-permalink" not in answer.headers
    told = read_parameters(answer.content)
    assert told["z_sha256"] == digest
    again = await running.client.post("/generate", json={"class": 1, "z": told["z"]})
    assert again.content == answer.content


@pytest.mark.anyio
async def test_z_of_a_seed_gives_the_pixels_of_the_seed(running: Any) -> None:
    seeded = await running.client.post("/generate?class=1&seed=9&format=npy")
    z = np.random.RandomState(9).randn(6).tolist()
    explicit = await running.client.post("/generate", json={"class": 1, "z": z, "format": "npy"})
    assert explicit.content == seeded.content


@pytest.mark.anyio
async def test_json_and_zip_of_a_z_name_its_hash(running: Any) -> None:
    sent = {"class": 1, "z": Z, "response": "json"}
    told = (await running.client.post("/generate", json=sent)).json()
    assert told["images"][0]["seed"] is None
    answer = await running.client.post("/generate", json={**sent, "response": "zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == [f"toy_class-1_z-{told['z_sha256'][:12]}.png"]


@pytest.mark.anyio
async def test_z_of_several_dimensions_has_their_nesting(run_app: Any, add_model: Any) -> None:
    add_model(z_shape=(2, 3))
    async with run_app() as running:
        sent = {"class": 1, "z": [Z[:3], Z[3:]]}
        answer = await running.client.post("/generate", json=sent)
        assert answer.status_code == 200, answer.text
        assert running.engine.batches[-1].z.shape == (1, 2, 3)
        assert read_parameters(answer.content)["z"] == sent["z"]
        flat = await running.client.post("/generate", json={"class": 1, "z": Z})
        assert flat.json()["code"] == "bad_z"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "z",
    [
        [], Z[:-1], [*Z, 0.0], [Z], "0.1", 0.1, {"0": 1}, [*Z[:-1], "1"], [*Z[:-1], None],
        [*Z[:-1], True], [*Z[:-1], float("nan")], [*Z[:-1], float("inf")], [*Z[:-1], 1e39],
        [*Z[:-1], 10**400], [*Z[:-1], [1.0]],
    ],
    ids=str,
)  # fmt: skip
async def test_z_that_does_not_fit_is_refused(running: Any, z: Any) -> None:
    content = json.dumps({"class": 1, "z": z})
    headers = {"content-type": "application/json"}
    answer = await running.client.post("/generate", content=content, headers=headers)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "bad_z")
    assert "z_shape" in problem["accepted"]
    assert len(running.engine.batches) == 2


@pytest.mark.anyio
async def test_z_in_the_query_is_told_where_it_belongs(running: Any) -> None:
    for method in ("POST", "GET"):
        answer = await running.client.request(method, "/generate?class=1&seed=1&z=1")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "unknown_parameter")
        assert "JSON body" in problem["hint"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "sent",
    [
        {"seed": 1, "seeds": "1"},
        {"n": 1, "seeds": "1"},
        {"z": Z, "seed": 1},
        {"z": Z, "n": 1},
        {"z": Z, "seeds": "1"},
    ],
    ids=lambda sent: "+".join(sent),
)
async def test_two_ways_to_say_which_images_are_refused(running: Any, sent: Any) -> None:
    answer = await running.client.post("/generate", json={"class": 1, **sent})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "conflicting_parameters")
    assert problem["got"] == json.dumps(sorted(sent))
    assert len(running.engine.batches) == 2
