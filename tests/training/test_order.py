import numpy as np

from anomalyclip_hf.training.trainer import epoch_order


def test_an_epoch_draws_each_image_once_in_an_order_of_its_own():
    labels = np.zeros(50, dtype=np.int64)
    first, again, second = (epoch_order(labels, seed=111, epoch=epoch) for epoch in (0, 0, 1))
    assert sorted(first) == list(range(50))
    assert first.tolist() == again.tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() != epoch_order(labels, seed=112, epoch=0).tolist()


def test_balanced_draws_both_kinds_alike_and_spreads_repeats():
    labels = np.array([0] * 95 + [1] * 5)
    order = epoch_order(labels, seed=3, epoch=0, balanced=True)
    assert len(order) == 100
    assert (labels[order] == 1).sum() == 50
    # Each rare image is repeated equally often, no frequent one is repeated.
    assert np.bincount(order, minlength=100)[95:].tolist() == [10] * 5
    assert np.bincount(order, minlength=100)[:95].max() == 1
    # Both kinds are mixed, not one after the other.
    assert 10 < (labels[order[:50]] == 1).sum() < 40
