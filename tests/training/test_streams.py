"""Random streams that depend on their address alone."""

from __future__ import annotations

import pytest
import torch

from training.streams import shuffled_indices, stream_at


def walk(start: int, count: int, size: int = 10, seed: int = 0) -> list[int]:
    return shuffled_indices(seed, size, start, count).tolist()


def test_every_item_is_visited_once_an_epoch() -> None:
    visited = [item for start in range(0, 42, 7) for item in walk(start, 7)]
    epochs = [visited[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # in an order of its own


@pytest.mark.parametrize(("start", "count"), [(0, 5), (3, 7), (8, 4), (9, 1), (10, 10), (17, 33)])
def test_walk_goes_on_from_any_position(start: int, count: int) -> None:
    assert walk(start, count) == walk(0, 60)[start : start + count]


def test_batch_may_be_larger_than_the_data() -> None:
    assert sorted(walk(0, 30)) == sorted([*range(10)] * 3)


def test_seeds_walk_differently() -> None:
    assert walk(0, 10, seed=0) != walk(0, 10, seed=1)


def test_stream_is_a_pure_function_of_its_address() -> None:
    first = torch.randn(4, generator=stream_at(1, "d", 64))
    torch.manual_seed(5)
    torch.randn(3)
    stream_at(1, "d", 128)
    assert torch.equal(torch.randn(4, generator=stream_at(1, "d", 64)), first)


def test_asking_for_a_stream_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    stream_at(0, "d", 0)
    assert torch.equal(torch.randn(3), expected)


def test_addresses_do_not_share_a_stream() -> None:
    addresses = [(s, n, p) for s in range(4) for n in ("d", "g", "posterior") for p in range(50)]
    assert len({stream_at(*address).initial_seed() for address in addresses}) == len(addresses)
