"""The references themselves: published sizes, equations against torch's and diffusers', and what follows from a formula."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.families.references import (
    advflow,
    alphaflow,
    dit,
    dmf,
    facm,
    imf,
    meanflow,
    mit,
    pmf,
    soflow,
)
from tests.families.references import equations as eq

FAMILIES = (advflow, imf, pmf, soflow, dmf, alphaflow, meanflow, facm)
DMF = {"encoder_blocks": dmf.TINY_ENCODER}
# tensors that a published file holds and that one step does not use, or that are computed
UNUSED = {
    "imf": {key for key in imf.layout(imf.TINY) if "v_final_layer" in key},
    "facm": set(facm.ROPE),
    "alphaflow": {*alphaflow.wrapper(dit.TINY), "autoencoder.model.vae.decoder.conv_in.weight"},
}


def z_of(config: Any, rows: int = 2, seed: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *config.z_shape, generator=rng, dtype=torch.float64)


def run(family: ModuleType, state: eq.State, config: Any, z: Tensor, y: list[int]) -> Tensor:
    return family.step(state, config, z, y, **(DMF if family is dmf else {}))


def tiny(family: ModuleType, seed: int = 0) -> eq.State:
    return eq.doubled(family.state_dict(family.TINY, seed))


# --- what was published ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "size", "tensors", "million"),
    [
        (imf, "B/2", 186, 88.9), (imf, "M/2", 342, 173.9), (imf, "L/2", 446, 409.1), (imf, "XL/2", 654, 610.4),
        (advflow, "XL/2", 288, 673.5), (advflow, "XL/2 56", 292, 675.1), (advflow, "XL/2 112", 292, 675.1),
        (pmf, "B/16", 239, 118.2), (pmf, "L/16", 447, 410.3), (pmf, "H/16", 655, 955.5),
        (soflow, "XL/2", 296, 676.7), (meanflow, "XL/2", 296, 676.7), (alphaflow, "XL/2", 296, 676.7),
        (dmf, "XL/2", 292, 675.1), (facm, "XL/1", 407, 675.3),
    ],
)  # fmt: skip
def test_layouts_have_the_published_number_of_tensors_and_values(
    family: ModuleType, size: str, tensors: int, million: float
) -> None:
    layout = family.layout(family.SIZES[size])
    assert len(layout) == tensors
    assert sum(map(math.prod, layout.values())) / 1e6 == pytest.approx(million, abs=0.05)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.FAMILY)
def test_drawn_states_have_their_layout_and_nothing_that_is_zero(family: ModuleType) -> None:
    state, layout = family.state_dict(family.TINY, 0), family.layout(family.TINY)
    assert {key: tuple(value.shape) for key, value in state.items() if key in layout} == layout
    assert all(value.abs().max() > 0 for key, value in state.items() if key in layout)


# --- equations, against others' --------------------------------------------------------------------


def test_small_equations_are_those_of_torch() -> None:
    x, scale = z_of(dit.TINY).flatten(2), 1 + torch.rand(64, dtype=torch.float64)
    same = torch.testing.assert_close
    same(eq.silu(x), functional.silu(x))
    same(eq.gelu_tanh(x), functional.gelu(x, approximate="tanh"))
    same(eq.layer_norm(x), functional.layer_norm(x, (64,), eps=1e-6))
    same(eq.rms_norm(x, scale), functional.rms_norm(x, (64,), scale, eps=1e-6))


def test_attention_is_that_of_torch_head_by_head() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 5, 12, generator=rng, dtype=torch.float64)
    split = [x.unflatten(1, (3, 4)).transpose(0, 1) for x in (q, k, v)]
    expected = functional.scaled_dot_product_attention(*split).transpose(0, 1).flatten(1)
    torch.testing.assert_close(eq.attention(q, k, v, 3, lambda head, which: head), expected)


def test_patches_are_convolved_and_laid_out_as_torch_does() -> None:
    z = z_of(dit.TINY)[0]
    state = tiny(advflow)
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    expected = functional.conv2d(z[None], weight, bias, stride=2)[0].flatten(1).T
    torch.testing.assert_close(eq.convolve(state, "x_embedder.proj", eq.cut(z, 2)), expected)
    channel_last = eq.cut(z, 2).unflatten(1, (4, 4)).transpose(1, 2).flatten(1)
    torch.testing.assert_close(eq.paste(channel_last, 4, 2), z, rtol=0, atol=0)


@pytest.mark.parametrize("t", [0.0, 0.375, 1.0, 250.0, 1000.0])
def test_time_features_are_cosines_and_sines_number_by_number(t: float) -> None:
    slow = [math.cos(t * 10_000 ** (-i / 128)) for i in range(128)]
    slow += [math.sin(t * 10_000 ** (-i / 128)) for i in range(128)]
    rounding = 1e-7 * max(1.0, t)  # of float32 frequencies
    assert (eq.time_features(t) - torch.tensor(slow, dtype=torch.float64)).abs().max() < rounding


def test_time_embedding_is_a_two_layer_network_row_by_row() -> None:
    state = tiny(soflow)
    name = "network.t_embedder.mlp"
    weights = [state[f"{name}.{i}.{x}"] for i in (0, 2) for x in ("weight", "bias")]
    features = eq.time_features(0.7).tolist()
    hidden = [
        sum(w * f for w, f in zip(row, features, strict=True)) + b
        for row, b in zip(weights[0].tolist(), weights[1].tolist(), strict=True)
    ]
    lit = [h / (1 + math.exp(-h)) for h in hidden]
    out = [
        sum(w * h for w, h in zip(row, lit, strict=True)) + b
        for row, b in zip(weights[2].tolist(), weights[3].tolist(), strict=True)
    ]
    embedding = eq.time_embedding(state, "network.t_embedder", 0.7)
    torch.testing.assert_close(embedding, torch.tensor(out, dtype=torch.float64))


def test_rotations_are_complex_products_that_keep_lengths() -> None:
    angles = eq.angles_2d(3, 8)
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = eq.rotate(x, angles)
    product = torch.view_as_complex(x.unflatten(1, (-1, 2))) * torch.exp(1j * angles)
    torch.testing.assert_close(turned, torch.view_as_real(product).flatten(1))
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    angles = eq.angles_1d(12, 8)
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def product(m: int, n: int) -> Tensor:
        return (eq.rotate(q, angles[m : m + 1]) * eq.rotate(k, angles[n : n + 1])).sum()

    torch.testing.assert_close(product(2, 5), product(8, 11))
    assert abs(product(2, 5) - product(2, 6)) > 1e-3


def test_grids_turn_by_row_in_the_first_half_and_by_column_in_the_second() -> None:
    angles = eq.angles_2d(4, 8).unflatten(0, (4, 4))
    assert torch.equal(angles[2, 0, :2], angles[2, 3, :2])
    assert torch.equal(angles[0, 2, 2:], angles[3, 2, 2:])
    assert angles[3, 1].tolist() == pytest.approx([3, 3 / 100, 1, 1 / 100])


def test_dit_is_the_one_of_diffusers() -> None:
    """At t = 0, where its other spacing of frequencies does not matter, with its keys renamed."""
    from diffusers import DiTTransformer2DModel

    config = replace(dit.TINY, depth=2)
    keys = dit.layout(config, ("t_embedder",))
    state = eq.doubled(dit.drawn(keys, config, seed=5))
    theirs = DiTTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.width // config.heads,
        in_channels=config.channels, num_layers=config.depth, sample_size=config.side, patch_size=config.patch,
        num_embeds_ada_norm=config.classes, norm_elementwise_affine=False, norm_eps=1e-6,
    ).double().eval()  # fmt: skip
    theirs.load_state_dict(_diffusers_names(state, config), strict=False)
    z, y = z_of(config), [4, 9]
    with torch.no_grad():
        expected = theirs(z, torch.zeros(2).long(), torch.tensor(y)).sample
    time = eq.time_embedding(state, "t_embedder", 0.0)
    for row, label in enumerate(y):
        c = time + state["y_embedder.embedding_table.weight"][label]
        made = dit.network(state, config, z[row], [c] * config.depth, last=c)
        torch.testing.assert_close(made, expected[row], rtol=1e-6, atol=1e-6)


def _diffusers_names(state: eq.State, config: dit.Config) -> eq.State:
    own = {
        "pos_embed.proj.weight": state["x_embedder.proj.weight"],
        "pos_embed.proj.bias": state["x_embedder.proj.bias"],
        "proj_out_2.weight": state["final_layer.linear.weight"],
        "proj_out_2.bias": state["final_layer.linear.bias"],
        "proj_out_1.weight": state["final_layer.adaLN_modulation.1.weight"],
        "proj_out_1.bias": state["final_layer.adaLN_modulation.1.bias"],
    }
    for i in range(config.depth):
        block = f"transformer_blocks.{i}"
        for x in ("weight", "bias"):
            for j, which in enumerate("qkv"):
                part = state[f"blocks.{i}.attn.qkv.{x}"].chunk(3)[j]
                own[f"{block}.attn1.to_{which}.{x}"] = part
            for there, here in {
                "attn1.to_out.0": "attn.proj",
                "ff.net.0.proj": "mlp.fc1",
                "ff.net.2": "mlp.fc2",
                "norm1.linear": "adaLN_modulation.1",
            }.items():
                own[f"{block}.{there}.{x}"] = state[f"blocks.{i}.{here}.{x}"]
            for there, layer in (("linear_1", 0), ("linear_2", 2)):
                key = f"{block}.norm1.emb.timestep_embedder.{there}.{x}"
                own[key] = state[f"t_embedder.mlp.{layer}.{x}"]
        table = state["y_embedder.embedding_table.weight"]
        own[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = table
    return own


# --- steps: what follows from their formulas ---------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.FAMILY)
def test_every_tensor_of_a_file_moves_the_step_but_those_that_are_named(family: ModuleType) -> None:
    """Held by gradients; of a table of classes only the rows that were asked for."""
    state = {
        key: value.double().requires_grad_()
        for key, value in family.state_dict(family.TINY, 0).items()
        if not value.is_complex()
    }
    run(family, state, family.TINY, z_of(family.TINY, rows=1), [4]).square().sum().backward()
    still = {key for key, value in state.items() if value.grad is None or not value.grad.any()}
    assert still == UNUSED.get(family.FAMILY, set())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.FAMILY)
def test_rows_do_not_know_of_each_other_and_classes_differ(family: ModuleType) -> None:
    state, z = tiny(family), z_of(family.TINY)
    both = run(family, state, family.TINY, z, [1, 8])
    assert both.dtype == torch.float64
    assert both.shape == z.shape
    torch.testing.assert_close(run(family, state, family.TINY, z[1:], [8]), both[1:])
    assert (run(family, state, family.TINY, z[1:], [2]) - both[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.FAMILY)
def test_a_silent_last_layer_leaves_a_times_z(family: ModuleType) -> None:
    """x0 = a z + b F: a is 0 where the network predicts the image itself, else 1."""
    state, z = tiny(family), z_of(family.TINY)
    for key in state:
        if "final_layer.linear" in key:
            state[key] = torch.zeros_like(state[key])
    a = 0 if family in (advflow, pmf) else 1
    made = run(family, state, family.TINY, z, [0, 1])
    torch.testing.assert_close(made, a * z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", [soflow, meanflow, alphaflow, dmf], ids=lambda f: f.FAMILY)
def test_flow_maps_subtract_what_the_network_says(family: ModuleType) -> None:
    """Doubling the last layer doubles z - x0."""
    state, z = tiny(family), z_of(family.TINY)
    once = run(family, state, family.TINY, z, [0, 1])
    twice = {key: 2 * v if "final_layer.linear" in key else v for key, v in state.items()}
    torch.testing.assert_close(z - run(family, twice, family.TINY, z, [0, 1]), 2 * (z - once))


def test_facm_goes_the_other_way() -> None:
    """Noise is at t = 0, so the last layer is added: SoFlow's sign turned."""
    state, z = tiny(facm), z_of(facm.TINY)
    once = facm.step(state, facm.TINY, z, [0, 1])
    twice = {key: 2 * v if "final_layer.linear" in key else v for key, v in state.items()}
    torch.testing.assert_close(facm.step(twice, facm.TINY, z, [0, 1]) - z, 2 * (once - z))


def test_deep_advflow_without_times_is_a_model_of_repeated_blocks() -> None:
    deep, long = advflow.TINY_DEEP, replace(advflow.TINY, depth=2 * advflow.TINY.depth)
    state = eq.doubled(advflow.state_dict(deep, 0))
    z = z_of(deep)
    timed = advflow.step(state, deep, z, [3, 5])
    for key in state:
        if key.startswith("t_embedder.mlp.2"):
            state[key] = torch.zeros_like(state[key])
    twice = dict(state)
    for key, value in state.items():
        if key.startswith("blocks."):
            _, i, rest = key.split(".", 2)
            twice[f"blocks.{int(i) + deep.depth}.{rest}"] = value
    plain = advflow.step(state, deep, z, [3, 5])
    torch.testing.assert_close(plain, advflow.step(twice, long, z, [3, 5]))
    assert (timed - plain).abs().max() > 1e-2


def test_dmf_with_one_time_for_all_does_not_care_where_the_second_begins() -> None:
    state, z = tiny(dmf), z_of(dmf.TINY)
    steps = [dmf.step(state, dmf.TINY, z, [3, 5], encoder_blocks=n) for n in (1, 3)]
    assert (steps[0] - steps[1]).abs().max() > 1e-3
    state["t_embedder.mlp.2.weight"].zero_()
    steps = [dmf.step(state, dmf.TINY, z, [3, 5], encoder_blocks=n) for n in (1, 3)]
    torch.testing.assert_close(*steps)


def test_imf_without_guidance_is_fed_a_zero() -> None:
    """omega = 1 is fed as 1 - 1/1 = 0, whose features are 128 ones and 128 zeros; the interval stays an input."""
    state, z = tiny(imf), z_of(imf.TINY, rows=1)
    own = mit.own_names(state)
    tokens = mit.prefix(own, 2, 1.0, omega=1.0, t_min=0.2, t_max=0.8)
    ones = torch.cat([torch.ones(128), torch.zeros(128)]).double()
    name = f"omega_embedder.mlp.0{mit.LINEAR}"
    hidden = eq.silu(eq.affine(own, name, ones))
    expected = own["omega_tokens"] + eq.affine(own, f"omega_embedder.mlp.2{mit.LINEAR}", hidden)
    torch.testing.assert_close(tokens[8:12], expected)
    guided = imf.step(state, imf.TINY, z, [2], omega=8.0)
    assert (guided - imf.step(state, imf.TINY, z, [2], omega=1.0)).abs().max() > 1e-3


def test_pmf_scales_its_noise() -> None:
    state, z = tiny(pmf), z_of(pmf.TINY, rows=1)
    loud = replace(pmf.TINY, noise_scale=2.0)
    torch.testing.assert_close(pmf.step(state, loud, z, [2]), pmf.step(state, pmf.TINY, 2 * z, [2]))


def test_alphaflow_turns_latents_back_position_by_position() -> None:
    state = alphaflow.state_dict(alphaflow.TINY, 0)
    latents = z_of(alphaflow.TINY)
    back = alphaflow.posterior(state, latents) - state["autoencoder_mean"]
    torch.testing.assert_close(back.square(), latents.square() * state["autoencoder_var"])
