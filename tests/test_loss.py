"""Losses against numbers worked out by hand."""

from math import log

import pytest
import torch
from torch.testing import assert_close

from anomalyclip_hf.loss_anomalyclip import (
    dice_loss,
    fill_masks_of_normal_images,
    focal_loss,
    global_anomaly_loss,
    local_anomaly_loss,
)

# Two pixels in a row: the left normal, the right anomalous; P(anomalous) 0.2 and 0.7.
MASKS = torch.tensor([[[0.0, 1.0]]])
ANOMALOUS = torch.tensor([[[0.2, 0.7]]])
MAPS = torch.stack([1 - ANOMALOUS, ANOMALOUS], dim=1)
FOCAL = -(0.2**2 * log(0.8) + 0.3**2 * log(0.7)) / 2
DICE_ANOMALOUS = 1 - (2 * 0.7 + 1) / (0.9 + 1 + 1)
DICE_NORMAL = 1 - (2 * 0.8 + 1) / (1.1 + 1 + 1)


def test_focal_by_hand():
    assert_close(focal_loss(MAPS, MASKS), torch.tensor([FOCAL]), rtol=0, atol=2e-5)
    plain = -(log(0.8) + log(0.7)) / 2  # gamma 0: cross entropy
    assert_close(focal_loss(MAPS, MASKS, gamma=0), torch.tensor([plain]), rtol=0, atol=2e-5)


def test_focal_clamps_like_the_authors():
    """Wholly wrong: pt is 1e-5 from the clamped target plus 1e-5."""
    maps = torch.tensor([[[[0.0]], [[1.0]]]])
    expected = -((1 - 2e-5) ** 2) * log(2e-5)
    assert_close(focal_loss(maps, torch.zeros(1, 1, 1)), torch.tensor([expected]), rtol=1e-4, atol=0)
    assert torch.isfinite(focal_loss(maps, torch.ones(1, 1, 1))).all()


def test_dice_by_hand():
    assert_close(dice_loss(ANOMALOUS, MASKS), torch.tensor([DICE_ANOMALOUS]))
    assert_close(dice_loss(1 - ANOMALOUS, 1 - MASKS), torch.tensor([DICE_NORMAL]))
    assert dice_loss(MASKS, MASKS).item() == 0
    assert_close(dice_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)), torch.zeros(1))


def test_dice_is_per_image():
    two = torch.cat([ANOMALOUS, MASKS]), torch.cat([MASKS, MASKS])
    assert_close(dice_loss(*two), torch.tensor([DICE_ANOMALOUS, 0.0]))


def test_local_loss_by_hand():
    one_layer = 4 * (FOCAL + DICE_ANOMALOUS + DICE_NORMAL)
    assert_close(local_anomaly_loss(MAPS[:, None], MASKS), torch.tensor(one_layer), rtol=1e-4, atol=0)
    two_layers = torch.stack([MAPS, MAPS], dim=1)
    assert_close(local_anomaly_loss(two_layers, MASKS), torch.tensor(2 * one_layer), rtol=1e-4, atol=0)
    assert_close(local_anomaly_loss(MAPS[:, None], MASKS, weight=1.0), torch.tensor(one_layer / 4), rtol=1e-4, atol=0)


def test_images_without_masks_are_left_out():
    maps = torch.cat([MAPS, 1 - MAPS])[:, None].requires_grad_()
    masks = torch.cat([MASKS, torch.full_like(MASKS, -1)])
    loss = local_anomaly_loss(maps, masks)
    assert_close(loss, local_anomaly_loss(MAPS[:, None], MASKS))
    loss.backward()
    assert maps.grad[0].abs().min() > 0 and maps.grad[1].abs().max() == 0
    assert local_anomaly_loss(maps, torch.full_like(masks, -1)).item() == 0


def test_normal_images_have_empty_masks():
    masks = torch.tensor([[[-1.0, -1.0]], [[-1.0, -1.0]], [[0.0, 1.0]]])
    filled = fill_masks_of_normal_images(masks, torch.tensor([0, 1, 1]))
    assert filled.tolist() == [[[0, 0]], [[-1, -1]], [[0, 1]]]
    assert fill_masks_of_normal_images(masks, None) is masks


def test_global_loss_by_hand():
    logits = torch.tensor([[log(3.0), 0.0], [log(3.0), 0.0]])  # P(normal) = 0.75
    loss = global_anomaly_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(-(log(0.75) + log(0.25)) / 2, abs=1e-6)
