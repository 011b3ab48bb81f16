"""POST /interpolate: key frames, what lies between them, and the file."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cat_serve.images import decode_png, read_parameters
from cat_serve.interpolation import lerp, slerp
from cat_serve.latents import latent_from_seed
from cat_serve.settings import Settings
from cat_serve.web.app import create_app

pytestmark = pytest.mark.anyio


def shown(data: bytes) -> np.ndarray:
    """Return the frames of an animation, uint8 [N, H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


async def image_of(running: Any, query: str) -> np.ndarray:
    answer = await running.client.post(f"/generate?{query}")
    assert answer.status_code == 200, answer.text
    return decode_png(answer.content)


async def test_key_frames_are_the_images_of_generate(running: Any) -> None:
    answer = await running.client.post(
        "/interpolate?class=1&seed=3&seed=8&seed=5&frames=9&truncation_psi=0.7"
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    frames = shown(answer.content)
    assert frames.shape == (9, 8, 12, 3)
    for frame, seed in ((0, 3), (4, 8), (8, 5)):
        wanted = await image_of(running, f"class=1&seed={seed}&truncation_psi=0.7")
        assert np.array_equal(frames[frame], wanted)


@pytest.mark.parametrize(("curve", "between"), [("slerp", slerp), ("lerp", lerp)])
async def test_latents_between_lie_on_the_curve(running: Any, curve: str, between: Any) -> None:
    query = f"class=1&seed=3&seed=8&frames=5&interpolation={curve}"
    answer = await running.client.post(f"/interpolate?{query}")
    assert answer.status_code == 200
    made = running.engine.batches[2:]
    z = np.concatenate([batch.z for batch in made])
    start, end = (latent_from_seed(seed, (6,)) for seed in (3, 8))
    wanted = [between(start, end, t) for t in (0, 0.25, 0.5, 0.75, 1)]
    assert np.allclose(z, wanted, atol=1e-6)
    assert {int(class_id) for batch in made for class_id in batch.class_id} == {1}


async def test_loop_goes_back_and_plays_for_ever(running: Any) -> None:
    query = "class=1&seed=3&seed=8&frames=4"
    opened = await running.client.post(f"/interpolate?{query}")
    closed = await running.client.post(f"/interpolate?{query}&loop=true")
    first, second = [await image_of(running, f"class=1&seed={seed}") for seed in (3, 8)]
    for answer, last_key, times in ((opened, 3, 1), (closed, 2, 0)):
        frames = shown(answer.content)
        assert np.array_equal(frames[0], first)
        assert np.array_equal(frames[last_key], second)
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.info["loop"] == times


async def test_json_body_means_the_same_as_the_query(running: Any) -> None:
    query = "class=sea+lion&seed=3&seed=8&frames=5&fps=20&loop=true&interpolation=lerp&format=zip"
    body = {"class": 1, "seed": [3, 8], "frames": 5, "fps": 20, "loop": True,
            "interpolation": "lerp", "format": "zip"}  # fmt: skip
    answers = [
        await running.client.post(f"/interpolate?{query}"),
        await running.client.post("/interpolate", json=body),
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content


async def test_headers_and_metadata_say_how_to_make_it_again(running: Any) -> None:
    first = await running.client.post("/interpolate?class=1&seed=3&seed=8&frames=5&fps=20")
    assert first.headers["x-seed"] == "3;8"
    assert first.headers["x-class"] == "1;1"
    assert first.headers["x-frames"] == "5"
    assert first.headers["x-determinism"] == "bytes"
    assert first.headers["x-model"] == running.service.model("toy").label
    assert "encode;dur=" in first.headers["server-timing"]
    told = read_parameters(first.content)
    assert told.pop("version") == running.service.model("toy").artefact.version
    assert told.pop("class_names") == {"1": "Sea_lion"}
    again = await running.client.post("/interpolate", json=told)
    assert again.status_code == 200, again.text
    assert again.content == first.content


@pytest.mark.parametrize(
    ("animation_format", "media_type"),
    [("webp", "image/webp"), ("gif", "image/gif"), ("zip", "application/zip")],
)
async def test_formats_show_the_same_frames(
    running: Any, animation_format: str, media_type: str
) -> None:
    query = f"class=1&seed=3&seed=8&frames=5&format={animation_format}"
    answer = await running.client.post(f"/interpolate?{query}")
    assert answer.headers["content-type"] == media_type
    if animation_format == "zip":
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            frames = np.stack([decode_png(archive.read(name)) for name in archive.namelist()])
    else:
        frames = shown(answer.content)
    lossless = await running.client.post("/interpolate?class=1&seed=3&seed=8&frames=5")
    assert np.array_equal(frames, shown(lossless.content))


async def test_drawn_seed_is_told(running: Any, run_app: Any) -> None:
    answers = [await running.client.post("/interpolate?class=1&class=1&frames=2") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].headers["x-seed"] != answers[1].headers["x-seed"]
    seed, same = answers[0].headers["x-seed"].split(";")
    assert seed == same
    wanted = await image_of(running, f"class=1&seed={seed}")
    assert np.array_equal(shown(answers[0].content)[0], wanted)


REFUSED = [
    ("seed=1&seed=2", "missing_parameter", "class"),
    ("class=1&seed=1", "bad_keys", "at least 2"),
    ("class=1", "bad_keys", "at least 2"),
    ("class=1&class=0&class=2&seed=1&seed=2", "bad_keys", "as many or one"),
    ("class=207&seed=1&seed=2", "unknown_class", "from 0 to 4"),
    ("class=crane&seed=1&seed=2", "ambiguous_class", "[2, 4]"),
    ("class=&seed=1&seed=2", "bad_class", "index"),
    ("class=1&seed=1&seed=-2", "bad_seed", "4294967295"),
    ("class=1&seed=1&seed=4294967296", "bad_seed", "4294967295"),
    ("class=1&seed=1&seed=2&frames=1", "bad_frames", "2 to 240"),
    ("class=1&seed=1&seed=2&frames=241", "bad_frames", "2 to 240"),
    ("class=1&seed=1&seed=2&seed=3&frames=2", "bad_frames", "from 3"),
    ("class=1&seed=1&seed=2&fps=0", "bad_fps", "1 to 60"),
    ("class=1&seed=1&seed=2&fps=61", "bad_fps", "1 to 60"),
    ("class=1&seed=1&seed=2&fps=51&format=gif", "bad_fps", "gif to 50"),
    ("class=1&seed=1&seed=2&interpolation=cubic", "bad_interpolation", "slerp"),
    ("class=1&seed=1&seed=2&loop=maybe", "bad_loop", "true or false"),
    ("class=1&seed=1&seed=2&truncation_psi=2", "bad_truncation_psi", "0 to 1"),
    ("class=1&seed=1&seed=2&format=mp4", "bad_format", "gif"),
    ("class=1&seed=1&seed=2&n=2", "unknown_parameter", "frames"),
    ("class=1&seed=1&seed=2&frames=3&frames=4", "repeated_parameter", "once"),
    ("class=1" + "".join(f"&seed={seed}" for seed in range(65)), "bad_seed", "at most 64"),
]


@pytest.mark.parametrize(("query", "code", "accepted"), REFUSED)
async def test_wrong_query_is_refused_before_any_work(
    running: Any, query: str, code: str, accepted: str
) -> None:
    answer = await running.client.post(f"/interpolate?{query}")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    assert accepted in str(problem["accepted"])
    assert len(running.engine.batches) == 2


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"class": True, "seed": [1, 2]}, "bad_class"),
        ({"class": 1, "seed": [1, True]}, "bad_seed"),
        ({"class": 1, "seed": [[1], 2]}, "bad_seed"),
        ({"class": [], "seed": [1, 2]}, "bad_class"),
        ({"class": 1, "seed": []}, "bad_seed"),
        ({"class": 1, "seed": [1, 2], "frames": True}, "bad_frames"),
        ({"class": 1, "seed": [1, 2], "steps": 3}, "unknown_parameter"),
        ([1], "bad_body"),
    ],
    ids=str,
)
async def test_wrong_body_is_refused(running: Any, body: Any, code: str) -> None:
    answer = await running.client.post("/interpolate", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


async def test_unknown_model_and_two_places_are_refused(running: Any) -> None:
    answer = await running.client.post("/interpolate?class=1&seed=1&seed=2&model=other")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    answer = await running.client.post("/interpolate?class=1", json={"class": 1, "seed": [1, 2]})
    assert (answer.status_code, answer.json()["code"]) == (422, "query_and_body")


async def test_frames_are_bounded_by_what_may_wait(run_app: Any) -> None:
    async with run_app(max_images_per_request=4, max_queued_images=6) as running:
        query = "class=1&seed=1&seed=2"
        refused = await running.client.post(f"/interpolate?{query}&frames=7")
        assert (refused.status_code, refused.json()["accepted"]) == (422, "an integer from 2 to 6")
        assert (await running.client.post(f"/interpolate?{query}&frames=6")).status_code == 200
    async with run_app(max_frames_per_request=5) as running:
        assert (await running.client.post(f"/interpolate?{query}&frames=6")).status_code == 422
        assert (await running.client.post(f"/interpolate?{query}&frames=5")).status_code == 200


async def test_every_key_frame_is_shown_if_nobody_says_how_many(run_app: Any) -> None:
    query = "class=1" + "".join(f"&seed={seed}" for seed in range(40))
    async with run_app(max_batch=64) as running:
        answer = await running.client.post(f"/interpolate?{query}&format=zip")
        assert answer.headers["x-frames"] == "40"
        few = await running.client.post("/interpolate?class=1&seed=1&seed=2&format=zip")
        assert few.headers["x-frames"] == "32"
    async with run_app(max_frames_per_request=39) as running:
        refused = await running.client.post(f"/interpolate?{query}")
        assert (refused.status_code, refused.json()["code"]) == (422, "bad_frames")
        assert refused.json()["accepted"] == "an integer from 2 to 39"


@pytest.mark.parametrize("frames", ["", "&frames=2", "&frames=1"])
async def test_queue_of_one_image_says_that_it_holds_no_animation(
    run_app: Any, frames: str
) -> None:
    async with run_app(max_images_per_request=1, max_queued_images=1) as running:
        answer = await running.client.post(f"/interpolate?class=1&seed=1&seed=2{frames}")
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_frames")
        assert "queue of one image" in answer.json()["accepted"]


async def test_frames_wait_in_the_queue_of_all_others(run_app: Any, steps: Any) -> None:
    async with run_app(concurrency=1, max_queued_images=8, max_images_per_request=8) as running:
        running.engine.before = steps
        busy = asyncio.create_task(running.client.post("/generate?class=1"))
        await steps.until_entered(1)
        query = "class=1&seed=1&seed=2&frames=6"
        waits = asyncio.create_task(running.client.post(f"/interpolate?{query}"))
        await steps.until(lambda: running.service.queued_images("toy") == 6)
        refused = await running.client.post(f"/interpolate?{query}")
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        late = await running.client.post(
            "/interpolate?class=1&seed=1&seed=2&frames=2", headers={"X-Deadline-Ms": "50"}
        )
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert running.service.queued_images("toy") == 6
        steps.allow(10)
        assert [(await task).status_code for task in (busy, waits)] == [200, 200]


async def test_classes_between_are_mixtures_of_the_studio(run_app: Any, add_model: Any) -> None:
    add_model(stages=2)
    async with run_app() as running:
        query = "class=1&class=3&class=3&seed=7&frames=7"
        answer = await running.client.post(f"/interpolate?{query}")
        assert answer.status_code == 200, answer.text
        (studio,) = running.engine.studios
        made = studio.batches[-2:]  # 4 and 3 rows
        shares = [
            {int(c): float(w) for c, w in zip(ids, weights, strict=True) if w}
            for batch in made
            for ids, weights in zip(batch.class_id, batch.class_weight, strict=True)
        ]
        thirds = [
            {1: 1},
            {1: 2 / 3, 3: 1 / 3},
            {1: 1 / 3, 3: 2 / 3},
            {3: 1},
            {3: 1},
            {3: 1},
            {3: 1},
        ]
        assert shares == [pytest.approx(share, abs=1e-6) for share in thirds]
        frames = shown(answer.content)
        assert np.array_equal(frames[0], await image_of(running, "class=1&seed=7"))
        assert np.array_equal(frames[3], await image_of(running, "class=3&seed=7"))
        assert answer.headers["x-class"] == "1;3;3"
        told = {k: v for k, v in read_parameters(answer.content).items()
                if k not in ("version", "class_names")}  # fmt: skip
        again = await running.client.post("/interpolate", json=told)
        assert again.content == answer.content


async def test_key_frames_may_be_mixtures(run_app: Any, add_model: Any) -> None:
    add_model(stages=2)
    async with run_app() as running:
        body = {"class": ["0:0.5,1:0.5", "3"], "seed": [1, 2], "frames": 3, "format": "zip"}
        answer = await running.client.post("/interpolate", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-class"] == "0:0.5,1:0.5;3"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            first = decode_png(archive.read("frame-0000.png"))
        wanted = await running.client.post("/generate", json={"class": "0:0.5,1:0.5", "seed": 1})
        assert np.array_equal(first, decode_png(wanted.content))
        wrong = await running.client.post("/interpolate", json={**body, "class": ["0:0.5,1:0.6", "3"]})  # fmt: skip
        assert (wrong.status_code, wrong.json()["code"]) == (422, "bad_mixture")
        many = {**body, "class": ["0:0.4,1:0.3,2:0.3", "3:0.5,4:0.5"]}
        wrong = await running.client.post("/interpolate", json=many)
        assert (wrong.status_code, wrong.json()["code"]) == (422, "bad_mixture")
        assert "key frame" in wrong.json()["detail"]


async def test_model_without_studio_has_no_way_between_classes(running: Any) -> None:
    answer = await running.client.post("/interpolate?class=1&class=3&seed=7")
    assert (answer.status_code, answer.json()["code"]) == (422, "no_studio")


async def test_shipped_model_keeps_its_key_frames(shipped: Any) -> None:
    """The real graphs: bytes on a path of one class, within the studio's budget between classes."""
    app = create_app(Settings(threads=1))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await app.state.service.settled.wait()

        async def frames_of(query: str) -> np.ndarray:
            answer = await client.post(f"/interpolate?{query}&frames=3&truncation_psi=0.7")
            assert answer.status_code == 200, answer.text
            return shown(answer.content)

        async def image(query: str) -> np.ndarray:
            answer = await client.post(f"/generate?{query}&truncation_psi=0.7")
            assert answer.status_code == 200, answer.text
            return decode_png(answer.content)

        one_class = await frames_of("class=7&seed=1&seed=2")
        assert np.array_equal(one_class[0], await image("class=7&seed=1"))
        assert np.array_equal(one_class[2], await image("class=7&seed=2"))
        mixed = (await frames_of("class=7&class=9&seed=1")).astype(int)
        budget = shipped.manifest.golden.max_levels["fp16"]
        for frame, class_id in ((0, 7), (2, 9)):
            plain = await image(f"class={class_id}&seed=1")
            assert np.abs(mixed[frame] - plain).max() <= budget
        assert np.array_equal(mixed[1], await image("class=7:0.5,9:0.5&seed=1"))
        assert np.abs(mixed[1] - mixed[0]).max() > budget


async def test_frame_that_must_not_be_shown_fails_the_request(running: Any) -> None:
    def spoil(answer: Any) -> Any:
        answer.images[-1] = 0
        return answer

    running.engine.after = spoil
    answer = await running.client.post("/interpolate?class=1&seed=1&seed=2&frames=4")
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["frames"]) == (500, "bad_output", [3])


async def test_openapi_describes_it(running: Any) -> None:
    document = (await running.client.get("/openapi.json")).json()
    operation = document["paths"]["/interpolate"]["post"]
    names = [parameter["name"] for parameter in operation["parameters"]]
    assert {"class", "seed", "frames", "fps", "interpolation", "loop", "format"} <= set(names)
    assert {"image/webp", "image/gif", "application/zip"} == set(
        operation["responses"]["200"]["content"]
    )
    assert json.dumps(document["components"]["schemas"]["InterpolateParameters"]["examples"])
