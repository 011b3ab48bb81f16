"""Both clients against real servers: what they ask and get, and how they say what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from cat_serve.client import AsyncClient, Client, Images
from cat_serve.errors import (
    InvalidInput,
    UnknownClass,
    UnknownModel,
)
from cat_serve.images import read_parameters
from cat_serve.latents import latent_from_seed
from cat_serve.manifest import Artefact
from tests.serving.processes import (
    ROOT,
)

SPENT_S = 60.0


@pytest.fixture(scope="module")
def address(shipped_url: str) -> str:
    return shipped_url


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_image_is_the_servers_with_what_is_known_of_it(
    client: Client, address: str, shipped: Artefact
) -> None:
    images = client.generate("ankle boot", seed=3, truncation_psi=0.7)
    plain = httpx.post(f"{address}/generate?class=9&seed=3&truncation_psi=0.7")
    (image,) = images
    assert image.data == plain.content
    assert (image.seed, image.media_type) == (3, "image/png")
    assert (images.model, images.version) == ("fashion-32", shipped.version)
    assert (images.class_id, images.class_text, images.determinism) == (9, "9", "bytes")
    assert (len(images), images.attempts) == (1, 1)
    assert images.timings.generate_ms > 0
    assert images.request_id
    assert image.array().shape == (32, 32, 3)
    assert image.pil().size == (32, 32)


def test_several_images_are_those_that_are_made_alone(client: Client, tmp_path: Path) -> None:
    images = client.generate(7, seed=10, n=3, format="webp")
    assert images.seeds == (10, 11, 12)
    alone = [client.generate(7, seed=seed, format="webp")[0] for seed in (10, 11, 12)]
    assert list(images) == alone
    assert images.array().shape == (3, 32, 32, 3)
    images[1].save(tmp_path / "new" / "one.webp")
    assert read_parameters((tmp_path / "new" / "one.webp").read_bytes())["seed"] == 11


def test_formats_hold_the_same_pixels(client: Client) -> None:
    arrays = {
        name: client.generate(7, seed=1, format=name)[0].array()
        for name in ("png", "webp", "npy", "jpeg")
    }
    for lossless in ("webp", "npy"):
        assert np.array_equal(arrays["png"], arrays[lossless])
    assert np.abs(arrays["png"].astype(int) - arrays["jpeg"]).mean() < 8
    several = client.generate(7, seed=1, n=2, format="npy")
    assert np.array_equal(several[0].array(), arrays["png"])
    assert several[1].pil().size == (32, 32)


def test_mixtures_stages_chosen_seeds_and_latents_are_asked_for(
    client: Client, shipped: Artefact
) -> None:
    mixed = client.generate({7: 0.7, 9: 0.3}, seeds="0-1,9", stage=1)
    assert mixed.seeds == (0, 1, 9)
    assert (mixed.class_id, mixed.class_text) == (None, "7:0.7,9:0.3")
    assert read_parameters(mixed[0].data)["stage"] == 1
    assert client.generate("7:0.7,9:0.3", seed=9, stage=1)[0] == mixed[2]
    z = latent_from_seed(5, shipped.manifest.z_shape)
    made = client.generate(7, z=z)
    assert made.seeds == (None,)
    assert np.array_equal(made[0].array(), client.generate(7, seed=5)[0].array())


def test_unknown_class_comes_with_what_resembles_it(client: Client) -> None:
    with pytest.raises(UnknownClass, match="no class 'sneeker'") as caught:
        client.generate("sneeker")
    assert caught.value.details["suggestions"] == ["sneaker"]
    assert caught.value.hint == "did you mean 'sneaker'?"
    assert caught.value.code == "unknown_class"


def test_other_wrong_parameters_say_which(client: Client) -> None:
    for options, code in (
        ({"seed": -1}, "bad_seed"),
        ({"n": 65}, "bad_n"),
        ({"n": 0}, "bad_n"),
        ({"truncation_psi": 2.0}, "bad_truncation_psi"),
        ({"format": "bmp"}, "bad_format"),
    ):
        with pytest.raises(InvalidInput) as caught:
            client.generate(7, **options)  # type: ignore[arg-type]
        assert caught.value.code == code
    with pytest.raises(UnknownModel):
        client.generate(7, model="other")


def test_numbers_may_be_numpys(client: Client, shipped: Artefact) -> None:
    plain = client.generate(9, seed=5, n=2, truncation_psi=0.5)
    made = client.generate(
        np.int64(9), seed=np.uint32(5), n=np.int8(2), truncation_psi=np.float64(0.5)
    )  # type: ignore[arg-type]
    assert list(made) == list(plain)
    z = latent_from_seed(5, shipped.manifest.z_shape)
    assert client.generate(9, z=list(z))[0] == client.generate(9, z=z)[0]
    assert client.generate(9, seeds=np.arange(3)).seeds == (0, 1, 2)
    path = client.interpolate(np.array([7, 9]), seed=np.array([1, 2]), frames=2, fps=np.int32(9))  # type: ignore[arg-type]
    assert (path.class_texts, path.seeds) == (("7", "9"), (1, 2))
    assert path.data == client.interpolate([7, 9], seed=[1, 2], frames=2, fps=9).data
    assert client.interpolate(np.int64(7), seed=[1, 2], frames=2).class_texts == ("7", "7")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
def test_what_json_has_no_word_for_is_refused_before_it_is_sent(client: Client, value: Any) -> None:
    for options in (
        {"z": [0.0] * 63 + [value]},
        {"z": np.full(64, value)},
        {"truncation_psi": value},
        {"seed": value},
    ):
        with pytest.raises(InvalidInput, match="finite") as caught:
            client.generate(7, **options)
        assert caught.value.code == f"bad_{next(iter(options))}"
    with pytest.raises(InvalidInput, match="finite"):
        client.interpolate(7, seed=[1, 2], truncation_psi=value)


def test_models_and_classes_are_listed(client: Client, shipped: Artefact) -> None:
    (card,) = client.models()
    assert (card.name, card.version, card.num_classes) == ("fashion-32", shipped.version, 10)
    assert (card.image_size, card.default, card.backend) == ((32, 32), True, "onnxruntime")
    assert (card.precision, card.determinism, card.max_images_per_request) == ("fp32", "bytes", 64)
    assert card.card["z_shape"] == list(shipped.manifest.z_shape)
    (classes,) = client.classes()
    assert classes.names == shipped.manifest.class_names
    assert client.classes("fashion-32") == (classes,)
    with pytest.raises(UnknownModel):
        client.classes("other")


def test_threads_share_a_client(client: Client) -> None:
    expected = [client.generate(i, seed=i)[0].data for i in range(8)]
    got: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: client.generate(i, seed=i)[0].data}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SPENT_S)
    assert [got[i] for i in range(8)] == expected


@pytest.mark.anyio
async def test_asynchronous_client_gives_the_same(address: str, client: Client) -> None:
    got: dict[int, Images] = {}

    async def ask(asking: AsyncClient, i: int) -> None:
        got[i] = await asking.generate(i, seed=i, n=2)

    async with AsyncClient(address) as asking, anyio.create_task_group() as tasks:
        assert await asking.ready()
        assert await asking.models() == client.models()
        assert await asking.classes() == client.classes()
        for i in range(6):
            tasks.start_soon(ask, asking, i)
    for i in range(6):
        assert list(got[i]) == list(client.generate(i, seed=i, n=2))


@pytest.mark.anyio
async def test_asynchronous_client_raises_the_same(running: Any) -> None:
    transport = httpx.ASGITransport(running.app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(UnknownClass):
            await client.generate("zebra")
        assert (await client.generate("sea lion", seed=1)).class_id == 1


def test_animation_is_the_servers_with_what_is_known_of_it(
    client: Client, address: str, shipped: Artefact, tmp_path: Path
) -> None:
    animation = client.interpolate([7, {7: 0.5, 9: 0.5}], seed=[1, 2], frames=5, loop=True)
    asked = {"class": ["7", "7:0.5,9:0.5"], "seed": [1, 2], "frames": 5, "loop": True}
    assert animation.data == httpx.post(f"{address}/interpolate", json=asked).content
    assert (animation.frames, animation.seeds, animation.attempts) == (5, (1, 2), 1)
    assert animation.class_texts == ("7", "7:0.5,9:0.5")
    assert (animation.model, animation.version) == ("fashion-32", shipped.version)
    assert (animation.media_type, animation.determinism) == ("image/webp", "bytes")
    assert animation.timings.generate_ms > 0
    animation.save(tmp_path / "new" / "path.webp")
    assert read_parameters((tmp_path / "new" / "path.webp").read_bytes())["frames"] == 5
    drawn = [client.interpolate([7, 9], frames=2, format="gif").seeds for _ in range(2)]
    assert drawn[0] != drawn[1]
    with pytest.raises(InvalidInput) as caught:
        client.interpolate(7, seed=1)
    assert caught.value.code == "bad_keys"


def test_without_httpx_the_package_works_and_the_client_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['httpx'] = None\n"
        "import cat_serve.cli, cat_serve.web.app\n"
        "try: import cat_serve.client\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stdout == "cat_serve.client needs httpx: pip install 'cat-serve[client]'\n"


def test_examples_of_the_guide_run(address: str, tmp_path: Path) -> None:
    """Run the Python of docs/serving.md as it stands, but for the address."""
    guide = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    ours = [each for each in examples if "cat_serve.client" in each]
    assert len(ours) == 3
    said = []
    for example in ours:
        script = example.replace("http://127.0.0.1:8000", address)
        assert script != example
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        said.append(result.stdout)
    assert (tmp_path / "boot.png").read_bytes()[1:4] == b"PNG"
    assert "fashion-32 9 (3, 4, 5, 6) bytes" in said[0]
    assert said[1] == f"{list(range(10))}\n"
    assert said[2] == "did you mean 'sneaker'? ['sneaker']\n"
