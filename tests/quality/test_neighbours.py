from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cat_serve.errors import InvalidInput
from cat_serve.quality import neighbours
from cat_serve.quality.neighbours import manifolds, nearer_share, nearest, squared_radii


def line(*values: float) -> Tensor:
    """Return features [N, 1]."""
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


@pytest.fixture(params=[1000, 2], ids=["one piece", "pieces of two"])
def _rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", request.param)


pytestmark = pytest.mark.usefixtures("_rows")


def test_radii_are_distances_to_the_kth_other_item() -> None:
    first, second = squared_radii(line(0, 1, 3, 10), (1, 2))
    assert first.tolist() == pytest.approx([1, 1, 4, 49], abs=1e-4)
    assert second.tolist() == pytest.approx([9, 4, 9, 81], abs=1e-4)


def test_overlap_is_counted_by_hand() -> None:
    """k = 1. Real 0, 1, 10, 12 with balls [-1, 1], [0, 2], [8, 12], [10, 14]; generated 0.5, 0.8, 11, 30.

    Generated balls: 0.3 about 0.5 and 0.8; 10.2 about 11; 19 about 30.
    """
    found = manifolds(line(0.5, 0.8, 11, 30), line(0, 1, 10, 12), k=1, k_density=1)
    assert found.precision == 3 / 4  # all but 30
    assert found.recall == 3 / 4  # 0 is in none
    assert found.density == (2 + 2 + 2 + 0) / 4
    assert found.coverage == 1


def test_recall_and_precision_are_not_the_same_thing() -> None:
    real = line(*range(20))
    few = line(*(9.5 + 0.01 * i for i in range(20)))
    collapsed = manifolds(few, real)
    assert (collapsed.precision, collapsed.recall) == (1, 0)
    assert collapsed.coverage < 0.7
    scattered = manifolds(line(*(100.0 * i for i in range(20))), real)
    assert scattered.precision == 1 / 20
    assert scattered.recall == 1


def test_the_same_set_overlaps_wholly_and_a_far_one_not_at_all() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    same = manifolds(features, features.flip(0))
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert set(manifolds(features + 100, features).to_dict().values()) == {0}


def test_two_samples_of_one_distribution_have_a_density_of_about_one() -> None:
    a, b = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0))
    found = manifolds(a, b)
    assert found.density == pytest.approx(1, abs=0.1)
    # Naeem et al., equation 9: 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)) for sets of one size, near 1 - 1/2^k
    assert found.coverage == pytest.approx(1 - 1 / 2**5, abs=0.03)


def test_nearest_are_in_order_and_exact() -> None:
    distances, indices = nearest(line(0.4, 1000), line(1000, 0, 1, 2), count=2)
    assert indices.tolist() == [[1, 2], [0, 3]]
    assert distances[0].tolist() == pytest.approx([0.4, 0.6])
    assert distances[1].tolist() == [0, 998]  # a copy is at no distance at all


def test_too_few_items_are_refused() -> None:
    with pytest.raises(InvalidInput, match="3 neighbours are wanted, and there are 2"):
        nearest(line(0), line(1, 2), count=3)
    with pytest.raises(InvalidInput, match="5 neighbours are wanted, and there are 2"):
        manifolds(line(0, 1, 2), line(0, 1, 2))


def test_nearer_share_counts_pairs() -> None:
    assert nearer_share(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])) == (2 + 0.5) / 4
    assert nearer_share(torch.zeros(3), torch.tensor([1.0])) == 1
    assert nearer_share(torch.ones(3), torch.ones(4)) == 0.5
