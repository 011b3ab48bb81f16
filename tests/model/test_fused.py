"""The plain and the studio module against the separate parts, and against each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from cat_serve.contract import Batch, StudioBatch
from cat_serve.model.decoder import Decoder, to_uint8
from cat_serve.model.fused import FusedModel, StudioModel, fold_equalized
from cat_serve.model.generator import Generator

Make = Callable[..., Generator]


@pytest.fixture
def generator(make_generator: Make) -> Generator:
    return fold_equalized(make_generator(latent_size=8, depth=3))


@pytest.fixture
def studio(generator: Generator, small_vae: AutoencoderKL) -> StudioModel:
    return StudioModel(generator, Decoder(small_vae)).eval()


def some_batch(size: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((size, 64), dtype=np.float32)
    return Batch(z, np.arange(size) % 5, np.linspace(0, 1, size, dtype=np.float32))


def test_one_class_is_the_plain_module(studio: StudioModel, small_vae: AutoencoderKL) -> None:
    plain = FusedModel(studio.generator, studio.decoder)
    batch = some_batch()
    output = studio.run(StudioBatch.of(batch))
    assert np.array_equal(output.images, plain.run(batch).images)
    assert output.ok.all()


def test_mixture_is_the_weighted_mean_of_embeddings_and_class_means(generator: Generator) -> None:
    z, psi = torch.randn(2, 64), torch.tensor([1.0, 0.25])
    class_id = torch.tensor([[0, 3, 4, 0], [2, 2, 1, 0]])
    weight = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.5, 0.0]])
    got = generator.mix(z, class_id, weight, psi)
    for row in range(2):
        embedding = sum(
            float(s) * generator.mapping.class_embedding[c]
            for c, s in zip(class_id[row], weight[row], strict=True)
        )
        center = sum(
            float(s) * generator.w_avg[c] for c, s in zip(class_id[row], weight[row], strict=True)
        )
        w = generator.mapping.from_embedding(z[row : row + 1], embedding[None])
        expected = (1 - psi[row]) * center + psi[row] * w
        torch.testing.assert_close(got[row : row + 1], expected)


def test_stage_images_are_the_decoded_stages(studio: StudioModel) -> None:
    batch = some_batch()
    tensors = [torch.from_numpy(array) for array in batch.feeds().values()]
    stages = studio.generator(*tensors, stages=True)
    output = studio.run(StudioBatch.of(batch))
    assert output.stage_images.shape == (4, 3, 16, 16, 3)
    for k in range(3):
        expected = to_uint8(studio.decoder(stages[:, k])).numpy()
        assert np.abs(output.stage_images[:, k].astype(int) - expected).max() <= 1
    assert (output.stage_images[:, 0] != output.stage_images[:, 2]).any()


@pytest.mark.parametrize(
    ("class_id", "weight", "ok"),
    [
        ([1, 2, 0, 0], [0.5, 0.5, 0, 0], True),
        ([1, 2, 3, 0], [0.3335, 0.3335, 0.3335, 0], True),  # 1.0005 is within the tolerance
        ([1, -7, 99, 5], [1, 0, 0, 0], True),  # the class of an unused slot is not read
        ([1, 5, 0, 0], [0.5, 0.5, 0, 0], False),
        ([1, -1, 0, 0], [0.5, 0.5, 0, 0], False),
        ([1, 2, 0, 0], [0.5, 0.498, 0, 0], False),
        ([1, 2, 0, 0], [1.25, -0.25, 0, 0], False),
        ([1, 2, 0, 0], [0, 0, 0, 0], False),
        ([1, 2, 0, 0], [1, np.nan, 0, 0], False),
        ([1, 2, 0, 0], [np.inf, 0, 0, 0], False),
    ],
)
def test_weights_decide_whether_a_row_is_ok(
    studio: StudioModel, class_id: list[int], weight: list[float], ok: bool
) -> None:
    batch = StudioBatch.of(some_batch(3))
    good = studio.run(batch)
    batch.class_id[1], batch.class_weight[1] = class_id, weight
    output = studio.run(batch)
    assert output.ok.tolist() == [True, ok, True]
    assert (output.images[[0, 2]] == good.images[[0, 2]]).all()


def test_halving_keeps_mapping_means_and_scale_in_float32(
    generator: Generator, small_vae: AutoencoderKL
) -> None:
    decoder = Decoder(AutoencoderKL.from_config(dict(small_vae.config)).eval())
    decoder.halve()
    dtypes = {name: p.dtype for name, p in decoder.named_parameters()}
    assert set(dtypes.values()) == {torch.float16}
    assert (decoder.mean.dtype, decoder.std.dtype) == (torch.float32, torch.float32)
    assert not [m for m in decoder.modules() if isinstance(m, torch.nn.GroupNorm)]
    latents = torch.randn(1, 4, 8, 8)
    images = decoder(latents.half())  # a decoder of 16 px may compute in half here
    assert images.dtype == torch.float16
    exact = Decoder(AutoencoderKL.from_config(dict(small_vae.config)).eval())
    exact.load_state_dict(
        {k.replace(".norm.", "."): v.float() for k, v in decoder.state_dict().items()}
    )
    torch.testing.assert_close(images.float(), exact(latents), atol=0.02, rtol=0.02)
