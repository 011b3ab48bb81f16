"""POST /generate with several images: formats, forms of the answer, and what stays equal."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cat_serve.backends.fake import FakeBackend
from cat_serve.contract import Batch
from cat_serve.images import grid, read_parameters
from cat_serve.web import bodies, generate

pytestmark = pytest.mark.anyio

FORMATS = ("png", "jpeg", "webp", "npy")
MEDIA_TYPES = dict(
    zip(FORMATS, ("image/png", "image/jpeg", "image/webp", "application/x-npy"), strict=True)
)


def expected(running: Any, seeds: range, class_id: int = 1, psi: float = 1.0) -> np.ndarray:
    """Return the engine's own images, each from a batch of its own."""
    model = running.service.model(None)
    engine = FakeBackend(model.artefact)
    z = [np.random.RandomState(seed).randn(1, 6).astype(np.float32) for seed in seeds]
    rows = [Batch(one, np.array([class_id]), np.array([psi], np.float32)) for one in z]
    return np.concatenate([engine.run(row).images for row in rows])


def pixels(data: bytes) -> np.ndarray:
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data), allow_pickle=False)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


async def post(running: Any, query: str) -> Any:
    answer = await running.client.post(f"/generate?{query}")
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("image_format", ["png", "webp", "npy"])
async def test_lossless_formats_hold_the_engines_image(running: Any, image_format: str) -> None:
    answer = await post(running, f"class=1&seed=5&format={image_format}")
    assert answer.headers["content-type"] == MEDIA_TYPES[image_format]
    assert np.array_equal(pixels(answer.content), expected(running, range(5, 6))[0])


async def test_jpeg_is_a_jpeg_of_the_models_size(running: Any) -> None:
    answer = await post(running, "class=1&seed=5&format=jpeg")
    assert answer.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size) == ("JPEG", (12, 8))


async def test_several_images_are_a_grid_unless_asked(running: Any) -> None:
    plain = await post(running, "class=1&seed=5&n=6")
    assert plain.headers["content-type"] == "image/png"
    assert np.array_equal(pixels(plain.content), grid(expected(running, range(5, 11))))
    assert (await post(running, "class=1&seed=5&n=6&response=grid")).content == plain.content


@pytest.mark.parametrize("image_format", FORMATS)
async def test_grid_honours_the_format(running: Any, image_format: str) -> None:
    answer = await post(running, f"class=1&seed=5&n=3&format={image_format}")
    assert answer.headers["content-type"] == MEDIA_TYPES[image_format]
    picture = pixels(answer.content)
    assert picture.shape == (16, 24, 3)
    if image_format != "jpeg":
        assert np.array_equal(picture, grid(expected(running, range(5, 8))))


async def test_grid_of_one_is_the_image(running: Any) -> None:
    one = await post(running, "class=1&seed=5&response=image")
    assert (await post(running, "class=1&seed=5&response=grid&n=1")).content == one.content


async def test_npy_can_be_one_array_of_all_images(running: Any) -> None:
    answer = await post(running, "class=1&seed=5&n=3&format=npy&response=image")
    assert np.array_equal(pixels(answer.content), expected(running, range(5, 8)))


@pytest.mark.parametrize("image_format", FORMATS)
async def test_zip_has_one_file_per_image_named_by_model_class_and_seed(
    running: Any, image_format: str
) -> None:
    answer = await post(running, f"class=1&seed=5&n=3&response=zip&format={image_format}")
    assert answer.headers["content-type"] == "application/zip"
    files = unzipped(answer.content)
    assert list(files) == [f"toy_class-1_seed-{seed}.{image_format}" for seed in (5, 6, 7)]
    for seed, data in zip((5, 6, 7), files.values(), strict=True):
        alone = await post(running, f"class=1&seed={seed}&format={image_format}")
        assert data == alone.content


@pytest.mark.parametrize("image_format", FORMATS)
async def test_json_has_images_with_seeds_and_parameters(running: Any, image_format: str) -> None:
    answer = await post(
        running, f"class=1&seed=5&n=2&truncation_psi=0.5&response=json&format={image_format}"
    )
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    images = content.pop("images")
    assert content == {
        "model": "toy",
        "version": running.service.model("toy").artefact.version,
        "class": 1,
        "class_name": "Sea_lion",
        "seed": 5,
        "n": 2,
        "truncation_psi": 0.5,
        "media_type": MEDIA_TYPES[image_format],
    }
    assert [image["seed"] for image in images] == [5, 6]
    for image in images:
        alone = await post(
            running, f"class=1&seed={image['seed']}&truncation_psi=0.5&format={image_format}"
        )
        assert base64.b64decode(image["base64"], validate=True) == alone.content


async def test_json_of_one_image_is_a_list_too(running: Any) -> None:
    content = (await post(running, "class=1&seed=5&response=json")).json()
    assert [image["seed"] for image in content["images"]] == [5]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("form", ["json", "zip", "grid"])
async def test_equal_requests_get_equal_bytes(running: Any, image_format: str, form: str) -> None:
    query = f"class=1&seed=5&n=3&format={image_format}&response={form}"
    first = await post(running, query)
    body = {"class": "sea lion", "seed": 5, "n": 3, "format": image_format, "response": form}
    second = await running.client.post("/generate", json=body)
    assert first.content == second.content


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("n", [1, 3])
async def test_files_say_how_to_make_them_again(running: Any, image_format: str, n: int) -> None:
    answer = await post(running, f"class=1&seed=5&n={n}&truncation_psi=0.5&format={image_format}")
    said = read_parameters(answer.content)
    assert said == {
        "model": "toy",
        "version": running.service.model("toy").artefact.version,
        "class": 1,
        "class_name": "Sea_lion",
        "seed": 5,
        "n": n,
        "truncation_psi": 0.5,
    }
    asked = {name: said[name] for name in ("model", "class", "seed", "n", "truncation_psi")}
    again = await running.client.post("/generate", json={**asked, "format": image_format})
    assert again.content == answer.content


@pytest.mark.parametrize("form", ["grid", "zip", "json"])
async def test_headers_tell_the_first_seed(running: Any, form: str) -> None:
    answer = await post(running, f"class=1&seed=5&n=3&response={form}")
    assert answer.headers["x-seed"] == "5"
    assert answer.headers["x-class"] == "1"
    assert answer.headers["x-determinism"] == "bytes"
    assert answer.headers["server-timing"].startswith("queue;dur=")


async def test_engine_without_byte_determinism_says_so(run_app: Any) -> None:
    def only_latent(engine: FakeBackend) -> None:
        engine.determinism = "latent"

    async with run_app(prepare=only_latent) as running:
        assert (await post(running, "class=1&n=2")).headers["x-determinism"] == "latent"
        card = (await running.client.get("/models")).json()["models"][0]
        assert card["determinism"] == "latent"


async def test_drawn_seed_of_several_images_is_returned(running: Any) -> None:
    first = await post(running, "class=1&n=3")
    again = await post(running, f"class=1&n=3&seed={first.headers['x-seed']}")
    assert again.content == first.content


async def test_seed_range_may_touch_the_end(running: Any) -> None:
    answer = await post(running, f"class=1&n=3&seed={2**32 - 3}&response=json")
    assert [image["seed"] for image in answer.json()["images"]][-1] == 2**32 - 1


async def test_drawn_seed_leaves_room_for_the_range(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda bound: bound - 1)
    answer = await post(running, "class=1&n=3")
    assert answer.headers["x-seed"] == str(2**32 - 3)


async def test_limit_of_n_is_the_servers(run_app: Any) -> None:
    async with run_app(max_images_per_request=3) as running:
        await post(running, "class=1&n=3")
        done = len(running.engine.batches)
        answer = await running.client.post("/generate?class=1&n=4")
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_n")
        assert answer.json()["accepted"] == "an integer from 1 to 3"
        assert answer.json()["got"] == 4
        limits = (await running.client.get("/models")).json()["models"][0]["limits"]
        assert limits["max_images_per_request"] == 3
        assert len(running.engine.batches) == done


async def test_one_bad_image_of_several_is_named(running: Any) -> None:
    def spoil(answer: Any) -> Any:
        images = answer.images.copy()
        images[1] = 7
        return type(answer)(images, answer.ok)

    running.engine.after = spoil
    answer = await running.client.post("/generate?class=1&seed=5&n=3")
    assert (answer.status_code, answer.json()["code"]) == (500, "bad_output")
    assert answer.json()["seeds"] == [6]


async def test_picture_that_a_format_cannot_hold_is_refused_before_any_work(
    run_app: Any, add_model: Any
) -> None:
    add_model(image_size=(8, 9000))
    async with run_app() as running:
        answer = await running.client.post("/generate?class=1&n=2&format=webp")
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_format")
        assert "18000 x 8 px" in answer.json()["detail"]
        assert len(running.engine.batches) == 2  # warm-up and golden images
        await post(running, "class=1&n=2&format=webp&response=zip")
        await post(running, "class=1&n=2&format=png")


async def test_encoding_leaves_the_event_loop_free(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder waits for an answer that only a free loop can give."""
    answered, real = threading.Event(), generate.answer

    def slow(*args: Any) -> Any:
        assert answered.wait(10)
        return real(*args)

    monkeypatch.setattr(generate, "answer", slow)
    working = asyncio.create_task(running.client.post("/generate?class=1&n=3"))
    while len(running.engine.batches) == 2:
        await asyncio.sleep(0.001)
    assert (await running.client.get("/healthz")).status_code == 200
    answered.set()
    assert (await working).status_code == 200


async def test_json_answer_is_what_the_documentation_describes(running: Any) -> None:
    document = (await running.client.get("/openapi.json")).json()
    (example,) = document["components"]["schemas"]["ImagesAnswer"]["examples"]
    content = (await post(running, "class=1&n=2&response=json")).json()
    for described in (example, content):
        bodies.ImagesAnswer.model_validate(described, strict=True)
