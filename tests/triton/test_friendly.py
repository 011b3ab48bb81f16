"""The model `cat` on a real Triton: images by class name, and errors that say what is accepted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from cat_serve.contract import Output
from cat_serve.images import decode_png, read_parameters
from cat_serve.manifest import Artefact
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from export.triton_server.server import TritonServer
from tests.triton_clients import infer_together, tensors

Ask = Callable[..., Any]
Expected = Callable[..., Output]


def test_names_and_indices_give_the_images_of_their_class(ask: Ask, expected: Expected) -> None:
    answer = ask("cat", class_=["Ankle_Boot", "7", "t-shirt"], seed=[1, 2, 3])
    np.testing.assert_array_equal(answer.as_numpy("image"), expected([9, 7, 0], [1, 2, 3]).images)
    assert answer.as_numpy("class_id").tolist() == [[9], [7], [0]]
    assert answer.as_numpy("seed").tolist() == [[1], [2], [3]]


def test_class_id_and_psi_of_each_row_count(ask: Ask, expected: Expected) -> None:
    psi = [1.0, 0.0, 0.7]
    answer = ask("cat", class_id=[9, 9, 9], seed=[4, 4, 4], truncation_psi=psi)
    images = answer.as_numpy("image")
    np.testing.assert_array_equal(images, expected([9, 9, 9], [4, 4, 4], psi).images)
    assert (images[0] != images[1]).any()


def test_a_seed_that_is_drawn_makes_the_image_again(ask: Ask) -> None:
    first = ask("cat", class_=["bag", "bag"])
    seeds = first.as_numpy("seed").reshape(-1)
    assert seeds[0] != seeds[1]
    again = ask("cat", class_=["bag", "bag"], seed=seeds)
    np.testing.assert_array_equal(first.as_numpy("image"), again.as_numpy("image"))


@pytest.fixture
async def over_http(project_root: Path, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """The service itself, on the same repository and in this process."""
    app = create_app(Settings(model_repository=project_root / "model_repository", threads=1))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await app.state.service.settled.wait()
        yield client


@pytest.mark.anyio
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
async def test_encoded_images_are_the_bytes_that_http_gives(
    ask: Ask, over_http: httpx.AsyncClient, image_format: str
) -> None:
    answer = ask(
        "cat", ["encoded"], class_=["coat"], seed=[5], truncation_psi=[0.7], format=[image_format]
    )
    asked = {"class": "coat", "seed": 5, "truncation_psi": 0.7, "format": image_format}
    got = await over_http.post("/generate", json=asked)
    assert got.status_code == 200
    assert answer.as_numpy("encoded")[0, 0] == got.content


def test_encoded_images_say_how_they_were_made(ask: Ask, shipped: Artefact) -> None:
    answer = ask(
        "cat", class_=["coat", "bag"], seed=[5, 6], truncation_psi=[0.5, 1], format=["png", "webp"]
    )
    png, webp = answer.as_numpy("encoded").reshape(-1)
    assert read_parameters(png) == {
        "model": "fashion-32", "version": shipped.version, "class": 4, "class_name": "coat",
        "seed": 5, "n": 1, "truncation_psi": 0.5,
    }  # fmt: skip
    assert read_parameters(webp)["class_name"] == "bag"
    np.testing.assert_array_equal(decode_png(png), answer.as_numpy("image")[0])


def test_only_outputs_that_are_asked_for_are_sent(ask: Ask) -> None:
    for outputs in (["image"], ["encoded", "seed"]):
        answer = ask("cat", outputs, class_id=[1])
        assert {each.name for each in answer.get_response().outputs} == set(outputs)


def test_http_clients_are_served_too(triton_server: TritonServer, expected: Expected) -> None:
    with http.InferenceServerClient(triton_server.http_url) as client:
        answer = client.infer("cat", tensors(http, {"class_": ["dress"], "seed": [8]}))
    np.testing.assert_array_equal(answer.as_numpy("image"), expected([3], [8]).images)


ROW = {"class_id": [1]}
REFUSED = {
    "near miss": ({"class_": ["sneakr"]}, "no class 'sneakr'", "did you mean 'sneaker'?"),
    "unknown name": ({"class_": ["zebra"]}, "9 ankle boot", "all digits are an index, from 0 to 9"),
    "index out of range": ({"class_": ["10"]}, "no class 10", "class 10 needs a model with more"),
    "negative id": ({"class_id": [-1]}, "no class -1", "no model in this repository"),
    "empty class": ({"class_": [""]}, "A class of 0 characters", "1 to 100 characters"),
    "endless class": ({"class_": ["9" * 5000]}, "A class of 5000 characters", "1 to 100"),
    "no class": ({"seed": [1]}, "this one has neither", "an index in digits or a name"),
    "two classes": (ROW | {"class_": ["1"]}, "this one has both", "an index in digits or a name"),
    "negative seed": (ROW | {"seed": [-1]}, "Seed -1", "seeds end at 4294967295"),
    "large seed": (ROW | {"seed": [2**32]}, "Seed 4294967296", "seeds end at 4294967295"),
    "large psi": (ROW | {"truncation_psi": [1.5]}, "truncation_psi 1.5", "1 is off"),
    "psi that is no number": (ROW | {"truncation_psi": [np.nan]}, "truncation_psi nan", "1 is off"),
    "format": (ROW | {"format": ["gif"]}, "no format 'gif'", "one of png, jpeg, webp"),
    "npy": (ROW | {"format": ["npy"]}, "no format 'npy'", "one of png, jpeg, webp"),
    "model": (ROW | {"model": ["cat-h2"]}, "no model 'cat-h2'", "models: fashion-32"),
    "one bad row": ({"class_": ["bag", "bagg"]}, "no class 'bagg'", "did you mean 'bag'"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "said", "hint"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_an_invalid_argument_that_says_what_is_accepted(
    ask: Ask, columns: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask("cat", **columns)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    first, second = refused.value.message().split("\n  hint: ")
    assert said in first
    assert hint in second


def test_text_that_is_not_utf8_is_an_invalid_argument(client: grpc.InferenceServerClient) -> None:
    tensor = grpc.InferInput("class", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"\xff\xfe"]], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="class is not UTF-8"):
        client.infer("cat", [tensor])


def test_a_bad_request_fails_none_of_its_neighbours(
    client: grpc.InferenceServerClient, expected: Expected
) -> None:
    columns = [{"class_": [str(i) if i % 4 else "nothing"], "seed": [i]} for i in range(10)]
    answers = infer_together(client, [("cat", each) for each in columns])
    for i, answer in enumerate(answers):
        if i % 4:
            np.testing.assert_array_equal(answer.as_numpy("image"), expected([i], [i]).images)
        else:
            assert answer.status() == "StatusCode.INVALID_ARGUMENT"


# --- a second model, whose images are not always fit to be shown -----------------------------


def ask_stripes(client: grpc.InferenceServerClient, **columns: Any) -> Any:
    rows = len(next(iter(columns.values())))
    return client.infer("cat", tensors(grpc, {"model": ["stripes"] * rows, **columns}))


def test_another_model_is_asked_by_name_and_has_its_own_size(
    second_client: grpc.InferenceServerClient,
) -> None:
    """Ten rows are more than the four that this model takes at once."""
    answer = ask_stripes(second_client, class_id=[1] * 10, seed=list(range(10)))
    assert answer.as_numpy("image").shape == (10, 8, 12, 3)
    assert answer.as_numpy("seed").reshape(-1).tolist() == list(range(10))
    assert read_parameters(answer.as_numpy("encoded")[9, 0])["model"] == "stripes"


@pytest.mark.parametrize(("class_id", "what"), [(0, "of a single colour"), (2, "marked as not ok")])
def test_images_that_must_not_be_shown_are_an_internal_error_with_their_seeds(
    second_client: grpc.InferenceServerClient, class_id: int, what: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask_stripes(second_client, class_id=[1, class_id, 1, class_id], seed=[11, 12, 13, 14])
    assert refused.value.status() == "StatusCode.INTERNAL"
    said = refused.value.message()
    assert what in said
    assert ("seed 12" in said, "seed 14" in said) == (True, True)
    assert "seed 11" not in said


def test_a_name_that_two_classes_share_is_refused_with_both_indices(
    second_client: grpc.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException, match="3 and 4") as refused:
        ask_stripes(second_client, class_=["crane"])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_class_that_another_model_has_is_said_to_be_there(
    second_client: grpc.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException, match="a class 9: fashion-32"):
        ask_stripes(second_client, class_id=[9])


def test_rows_of_two_models_are_refused(second_client: grpc.InferenceServerClient) -> None:
    columns = {"model": ["stripes", "fashion-32"], "class_id": [1, 1]}
    with pytest.raises(InferenceServerException, match="name 2 models: stripes, fashion-32"):
        second_client.infer("cat", tensors(grpc, columns))
