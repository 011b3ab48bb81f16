"""GET /generate and permalinks: entity tags, conditional requests, and addresses that never mean another image."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.images import read_parameters

pytestmark = pytest.mark.anyio

GET = "/generate?class=1&seed=3"
BOB = "bobs-own-secret-key"


async def test_get_is_post_with_a_tag(running: Any) -> None:
    posted = await running.client.post(GET)
    got = await running.client.get(GET)
    assert got.status_code == 200
    assert got.content == posted.content
    assert got.headers["cache-control"] == "no-cache"
    assert got.headers["etag"].startswith('"')
    assert "etag" not in posted.headers
    assert "cache-control" not in posted.headers
    for name in ("x-seed", "x-model", "x-class", "x-determinism", "x-permalink"):
        assert got.headers[name] == posted.headers[name]


async def test_get_without_a_seed_is_refused_and_says_why(running: Any) -> None:
    answer = await running.client.get("/generate?class=1")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "missing_parameter")
    assert problem["parameter"] == "seed"
    assert "same image" in problem["detail"]
    assert "etag" not in answer.headers
    assert (await running.client.get("/generate?class=1&seeds=3-4,9")).status_code == 200


@pytest.mark.parametrize(
    "given", ["{}", "W/{}", '"other", {}', 'W/"other" , W/{},"last"', "*"], ids=str
)
async def test_known_tag_gets_304_without_any_work(running: Any, given: str) -> None:
    tag = (await running.client.get(GET)).headers["etag"]
    before = len(running.engine.batches)
    headers = {"if-none-match": given.format(tag)}
    answer = await running.client.get(GET, headers=headers)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == tag
    assert answer.headers["cache-control"] == "no-cache"
    assert len(running.engine.batches) == before


@pytest.mark.parametrize("given", ['"other"', "", "{}x", "other{}", "x", '"'], ids=str)
async def test_other_tags_get_the_image(running: Any, given: str) -> None:
    tag = (await running.client.get(GET)).headers["etag"]
    given = given.format(tag.strip('"'))
    answer = await running.client.get(GET, headers={"if-none-match": given})
    assert answer.status_code == 200
    assert answer.content


async def test_known_tag_does_not_excuse_a_wrong_request(running: Any) -> None:
    answer = await running.client.get("/generate?class=1&seed=-1", headers={"if-none-match": "*"})
    assert answer.status_code == 422


async def test_tags_differ_with_everything_that_changes_the_bytes(
    run_app: Any, add_model: Any
) -> None:
    add_model(stages=3)
    tails = ["", "&truncation_psi=0.5", "&n=2", "&n=2&response=zip", "&n=2&response=json",
             "&format=webp", "&stage=1", "&stage=2"]  # fmt: skip
    queries = [f"class={c}&seed={s}{tail}" for c in (1, "1:0.5,3:0.5") for s in (3, 4) for tail in tails]  # fmt: skip
    async with run_app() as running:
        answers = [await running.client.get(f"/generate?{query}") for query in queries]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.headers["etag"] for answer in answers}) == len(queries)
        for one, other in itertools.combinations(answers, 2):
            assert one.content != other.content


async def test_tags_are_equal_where_the_bytes_are(run_app: Any, add_model: Any) -> None:
    add_model(stages=3)
    queries = ["class=1&seed=3", "class=sea+lion&seed=3&n=1", "class=1:1&seed=3&truncation_psi=1",
               "class=1&seeds=3&stage=3&format=png&response=image&model=toy"]  # fmt: skip
    async with run_app() as running:
        answers = [await running.client.get(f"/generate?{query}") for query in queries]
        assert len({(answer.headers["etag"], answer.content) for answer in answers}) == 1


async def test_tag_stays_after_a_restart_and_goes_with_the_version(
    run_app: Any, add_model: Any
) -> None:
    tags = []
    add_model()
    for version in (1, 1, 2):
        if version == 2:
            add_model(version="2", source={"changed": True})
        async with run_app() as running:
            tags.append((await running.client.get(GET)).headers["etag"])
    assert tags[0] == tags[1] != tags[2]


async def test_tag_goes_with_the_precision(
    run_app: Any, monkeypatch: pytest.MonkeyPatch, add_model: Any
) -> None:
    tags = []
    for precision in ("fp32", "fp16"):
        monkeypatch.setattr(FakeBackend, "precision", precision)
        async with run_app() as running:
            tags.append((await running.client.get(GET)).headers["etag"])
    assert tags[0] != tags[1]


async def test_tag_is_weak_where_bytes_are_not_promised(
    run_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "determinism", "latent")
    async with run_app() as running:
        answer = await running.client.get(GET)
        assert answer.headers["x-determinism"] == "latent"
        tag = answer.headers["etag"]
        assert tag.startswith('W/"')
        for given in (tag, tag.removeprefix("W/")):
            again = await running.client.get(GET, headers={"if-none-match": given})
            assert (again.status_code, again.headers["etag"]) == (304, tag)


@pytest.mark.parametrize(
    "query",
    ["class=1&seed=3", "class=1&seed=3&truncation_psi=0.25&format=webp", "class=1&seed=3&stage=2",
     "class=1&seed=3&truncation_psi=0&stage=1&format=npy", "class=1&seeds=3&response=grid"],
)  # fmt: skip
async def test_permalink_is_the_same_bytes_for_ever(
    run_app: Any, add_model: Any, query: str
) -> None:
    add_model(stages=3)
    async with run_app() as running:
        made = await running.client.post(f"/generate?{query}")
        label = running.service.model(None).label
        address = made.headers["x-permalink"]
        assert address.startswith(f"/images/{label}/1/3.")
        answer = await running.client.get(address)
        assert (answer.status_code, answer.content) == (200, made.content)
        assert answer.headers["content-type"] == made.headers["content-type"]
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-permalink"] == address
        before = len(running.engine.batches)
        headers = {"if-none-match": answer.headers["etag"]}
        again = await running.client.get(address, headers=headers)
        assert (again.status_code, len(running.engine.batches)) == (304, before)
        assert again.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("query", ["seed=3&n=2", "seeds=3,9", "seed=3&response=json", "seed=3&response=zip"])  # fmt: skip
async def test_answer_that_is_no_single_image_has_no_permalink(running: Any, query: str) -> None:
    answer = await running.client.post(f"/generate?class=1&{query}")
    assert answer.status_code == 200
    assert "x-permalink" not in answer.headers


async def test_permalink_keeps_the_prefix_of_a_proxy(running: Any) -> None:
    running.app.root_path = "/cats"
    answer = await running.client.post(GET)
    assert answer.headers["x-permalink"].startswith("/cats/images/toy@")


async def test_keys_make_what_is_kept_private(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB}") as running:
        headers = {"x-api-key": BOB}
        answer = await running.client.get(GET, headers=headers)
        assert answer.headers["cache-control"] == "private, no-cache"
        address = answer.headers["x-permalink"]
        image = await running.client.get(address, headers=headers)
        assert image.headers["cache-control"] == "private, max-age=31536000, immutable"
        tag = {"if-none-match": image.headers["etag"]}
        assert (await running.client.get(address, headers=tag)).status_code == 401


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (("{version}", "0123456789ab"), 404, "unknown_version"),
        (("{version}", "latest"), 404, "unknown_version"),
        (("toy@", "other@"), 404, "unknown_model"),
        (("/1/", "/5/"), 422, "unknown_class"),
        (("/1/", "/sea lion/"), 422, "bad_class"),
        (("/1/", "/-1/"), 422, "bad_class"),
        *(
            (("/1/", f"/{text}/"), 422, "bad_class")
            for text in ("+1", "-0", "1.0", "0_1", "%201", "%D9%A1")
        ),
        *((("3.png", f"{text}.png"), 422, "bad_seed") for text in ("+3", "3.0", "0_3", "%203")),
        (("3.png", "4294967296.png"), 422, "bad_seed"),
        (("3.png", "x.png"), 422, "bad_seed"),
        (("3.png", "3.gif"), 422, "bad_format"),
        (("3.png", "3.png?truncation_psi=2"), 422, "bad_truncation_psi"),
        (("3.png", "3.png?stage=1"), 422, "no_studio"),
        (("3.png", "3.png?truncation_psi=0_1"), 422, "bad_truncation_psi"),
        (("3.png", "3.png?stage=0"), 422, "bad_stage"),
        (("3.png", "3.png?stage=1.0"), 422, "bad_stage"),
        (("3.png", "3.png?n=2"), 422, "unknown_parameter"),
        (("3.png", "3.png?truncation_psi=1&truncation_psi=1"), 422, "repeated_parameter"),
        (("@{version}", ""), 404, "not_found"),
        (("3.png", "3"), 404, "not_found"),
    ],
)
async def test_wrong_address_is_a_problem_that_nobody_keeps(
    running: Any, change: tuple[str, str], status: int, code: str
) -> None:
    version = running.service.model(None).artefact.version
    address = "/images/toy@{version}/1/3.png".replace(*change).format(version=version)
    answer = await running.client.get(address)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "cache-control" not in answer.headers
    assert "etag" not in answer.headers
    assert len(running.engine.batches) == 2


async def test_version_that_is_served_is_named(running: Any) -> None:
    version = running.service.model(None).artefact.version
    answer = await running.client.get("/images/toy@000000000000/1/3.png")
    assert answer.json()["accepted"] == [version]


async def test_failure_is_not_kept(running: Any) -> None:
    def black(output: Any) -> Any:
        return type(output)(np.zeros_like(output.images), output.ok)

    running.engine.after = black
    answer = await running.client.get(GET)
    assert answer.status_code == 500
    assert "etag" not in answer.headers
    assert "cache-control" not in answer.headers


async def test_permalink_says_how_the_image_was_made(running: Any) -> None:
    address = (await running.client.post(GET)).headers["x-permalink"]
    told = read_parameters((await running.client.get(address)).content)
    assert (told["class"], told["seed"], told["n"]) == (1, 3, 1)
