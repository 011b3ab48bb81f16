"""What both models do without a server: rows out of tensors, and batches put together and taken apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.contract import Batch, Output
from cat_serve.errors import (
    ArtefactError,
    BackendError,
    InvalidInput,
    MissingDependency,
    UnknownModel,
)
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import Artefact
from cat_serve.triton_models.asked import parse, truncation_psi
from cat_serve.triton_models.catalogue import Catalogue, read_catalogue
from cat_serve.triton_models.engine import open_engine, run_together
from cat_serve.triton_models.stub import require_whole_tensors


@pytest.fixture
def friendly_folder(project_root: Path) -> Path:
    return project_root / "model_repository" / "cat" / "1"


@pytest.fixture
def catalogue(friendly_folder: Path) -> Catalogue:
    return read_catalogue(friendly_folder, {"fashion-32": 1}, "fashion-32")


def test_the_copy_of_a_manifest_has_the_version_of_its_model(
    catalogue: Catalogue, shipped: Artefact
) -> None:
    served = catalogue.find("fashion-32")
    assert served.artefact.version == shipped.version
    assert served.artefact.manifest == shipped.manifest


def test_rows_become_batches_that_the_engine_takes(catalogue: Catalogue) -> None:
    seeds = np.arange(130)
    asked = parse({"class_id": seeds % 10, "seed": seeds}, catalogue)
    batches = asked.batches()
    assert [len(batch) for batch in batches] == [64, 64, 2]
    np.testing.assert_array_equal(
        np.concatenate([batch.z for batch in batches]), latents_from_seeds(range(130), (64,))
    )
    assert np.concatenate([b.class_id for b in batches]).tolist() == (seeds % 10).tolist()
    assert {b.truncation_psi.dtype for b in batches} == {np.dtype(np.float32)}


def test_left_out_inputs_have_the_defaults_of_http(catalogue: Catalogue) -> None:
    asked = parse({"class": np.array([b"bag"], dtype=np.object_)}, catalogue)
    (image,) = asked.images
    assert (image.class_id, image.truncation_psi, asked.formats) == (8, 1.0, ("png",))
    assert asked.model.name == "fashion-32"
    assert 0 <= image.seed < 2**32


@pytest.mark.parametrize("text", ["0.7", "0.1", "0.333", "1.0", "0.0", "0.123456"])
def test_psi_is_the_decimal_that_was_meant(text: str) -> None:
    assert truncation_psi(np.float32(text)) == float(text)


def test_negative_zero_is_zero() -> None:
    assert str(truncation_psi(np.float32(-0.0))) == "0.0"


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_psi_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match="not a number from 0 to 1"):
        truncation_psi(np.float32(value))


def test_a_copy_that_is_missing_or_damaged_is_refused(
    friendly_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=r"cat has no fashion-32\.json"):
        read_catalogue(tmp_path, {"fashion-32": 1}, "fashion-32")
    copy = (friendly_folder / "fashion-32.json").read_text()
    (tmp_path / "fashion-32.json").write_text(copy[:-100])
    with pytest.raises(ArtefactError, match="damaged"):
        read_catalogue(tmp_path, {"fashion-32": 1}, "fashion-32")


def test_a_default_model_that_is_not_there_is_refused(friendly_folder: Path) -> None:
    with pytest.raises(UnknownModel, match="no model 'other'"):
        read_catalogue(friendly_folder, {"fashion-32": 1}, "other")


# --- the engine model ------------------------------------------------------------------------


@pytest.fixture
def rows() -> Callable[..., Batch]:
    def make(*class_ids: int) -> Batch:
        z = latents_from_seeds(class_ids, (64,))
        return Batch(z, np.array(class_ids), np.ones(len(class_ids), np.float32))

    return make


def test_requests_share_passes_no_longer_than_the_model_takes(
    shipped: Artefact, rows: Callable[..., Batch]
) -> None:
    backend = FakeBackend(shipped)
    batches = [rows(*range(3)), rows(*range(62)), rows(9)]
    outcomes = run_together(backend, batches)
    assert [len(batch) for batch in backend.batches] == [64, 2]
    for batch, outcome in zip(batches, outcomes, strict=True):
        assert isinstance(outcome, Output)
        np.testing.assert_array_equal(outcome.images, FakeBackend(shipped).run(batch).images)


def test_a_request_that_cannot_be_run_fails_alone(
    shipped: Artefact, rows: Callable[..., Batch]
) -> None:
    def refuse_seven(batch: Batch) -> None:
        if 7 in batch.class_id:
            raise BackendError("seven")

    outcomes = run_together(FakeBackend(shipped, refuse_seven), [rows(1), rows(2, 7), rows(3)])
    assert [isinstance(each, BackendError) for each in outcomes] == [False, True, False]


def test_no_requests_need_no_pass(shipped: Artefact) -> None:
    backend = FakeBackend(shipped)
    assert run_together(backend, []) == []
    assert backend.batches == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ('{"precision": {"string_value": "fp32"}}', "was written for version None"),
        ('{"version_1": {"string_value": "VERSION"}}', "has no parameter 'precision'"),
        ('{"version_1": {"string_value": "VERSION"}, "threads": {"string_value": "-1"}, '
         '"precision": {"string_value": "fp32"}}', "threads '-1'"),
        ('{"version_1": {"string_value": "VERSION"}, "threads": {"string_value": "1"}, '
         '"precision": {"string_value": "int8"}}', "precision 'int8'"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused(
    shipped: Artefact, parameters: str, said: str
) -> None:
    config = f'{{"parameters": {parameters.replace("VERSION", shipped.version)}}}'
    args = {"model_config": config, "model_name": "fashion-32", "model_version": "1"}
    with pytest.raises(ArtefactError, match=said) as refused:
        open_engine(shipped, args)
    assert refused.value.hint


def test_precision_and_threads_of_the_configuration_reach_the_engine(shipped: Artefact) -> None:
    config = (
        f'{{"parameters": {{"version_1": {{"string_value": "{shipped.version}"}}, '
        '"threads": {"string_value": "1"}, "precision": {"string_value": "fp16"}}}'
    )
    args = {"model_config": config, "model_name": "fashion-32", "model_version": "1"}
    backend = open_engine(shipped, args)
    assert backend.precision == "fp16"
    assert backend._session.get_session_options().intra_op_num_threads == 1


class Tensor:
    """The server's tensor as far as the check of numpy uses it; `DAMAGE` is what a bad server adds."""

    DAMAGE = 0

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.array = array

    @classmethod
    def from_dlpack(cls, name: str, tensor: Tensor) -> Tensor:
        return cls(name, tensor.array + cls.DAMAGE)

    def as_numpy(self) -> np.ndarray:
        return self.array


def test_numpy_is_checked_by_what_it_does_and_not_by_its_version() -> None:
    class Backend:
        pass

    Backend.Tensor = Tensor
    require_whole_tensors(Backend)
    Backend.Tensor = type("Damaging", (Tensor,), {"DAMAGE": 1})
    with pytest.raises(MissingDependency, match=f"numpy {np.__version__}"):
        require_whole_tensors(Backend)
