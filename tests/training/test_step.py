import copy

import pytest
import torch
from accelerate import Accelerator

from anomalyclip_hf.training import NonFiniteLossError, training_step
from anomalyclip_hf.training.step import count_batch


def make_batch(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(count, 42, 42, generator=generator) > 0.8).float()
    labels = torch.arange(count) % 2
    masks[labels == 0] = 0
    return {
        "pixel_values": torch.randn(count, 3, 42, 42, generator=generator),
        "labels": labels,
        "masks": masks,
    }


def take(batch, rows):
    return {key: value[rows] for key, value in batch.items()}


def adam(model):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.5, 0.999))


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_five_steps_equal_a_plain_loop(tiny_model, accelerator):
    plain = copy.deepcopy(tiny_model)
    optimizer, own = adam(plain), adam(tiny_model)
    for step in range(5):
        batch = make_batch(seed=step)
        output = plain(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses = training_step(tiny_model, batch, own, accelerator)
        assert losses.global_loss == pytest.approx(output.global_loss.item(), abs=1e-6)
        assert losses.local_loss == pytest.approx(output.local_loss.item(), abs=1e-6)
    assert torch.equal(tiny_model.prompt_learner.context, plain.prompt_learner.context)
    assert torch.equal(tiny_model.prompt_learner.deep_prompts, plain.prompt_learner.deep_prompts)
    assert losses.loss != pytest.approx(training_step(tiny_model, make_batch(seed=9), own, accelerator).loss)


def test_accumulated_unequal_parts_with_missing_masks_equal_the_whole_batch(tiny_model, accelerator):
    batch = make_batch(count=7)
    batch["masks"][[1, 3]] = -1  # two anomalous images without a mask
    parts = copy.deepcopy(tiny_model)
    whole = training_step(tiny_model, batch, torch.optim.SGD([tiny_model.prompt_learner.context], lr=1.0), accelerator)
    assert count_batch(batch).tolist() == [7, 5]
    optimizer = torch.optim.SGD([parts.prompt_learner.context], lr=1.0)
    split = [take(batch, rows) for rows in (slice(0, 4), slice(4, 5), slice(5, 7))]
    assert training_step(parts, split, optimizer, accelerator) == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(parts.prompt_learner.context, tiny_model.prompt_learner.context, atol=1e-5, rtol=1e-4)


def test_padding_counts_for_nothing(tiny_model, accelerator):
    before = tiny_model.prompt_learner.context.detach().clone()
    optimizer = torch.optim.SGD([tiny_model.prompt_learner.context], lr=1.0)
    assert training_step(tiny_model, make_batch(count=1), optimizer, accelerator, padding=True) == (0, 0)
    assert torch.equal(tiny_model.prompt_learner.context, before)


def test_without_masks_there_is_the_image_loss_alone(tiny_model, accelerator):
    batch = make_batch()
    expected = tiny_model(pixel_values=batch["pixel_values"], labels=batch["labels"]).global_loss.item()
    del batch["masks"]
    losses = training_step(tiny_model, batch, adam(tiny_model), accelerator)
    assert losses.local_loss == 0
    assert losses.loss == pytest.approx(expected, abs=1e-6)


def test_weights_scale_the_losses_and_0_leaves_one_out(tiny_model, accelerator):
    batch = make_batch()
    learner = tiny_model.prompt_learner
    output = tiny_model(**batch)
    expected = torch.autograd.grad(0.5 * output.local_loss, learner.context)[0]
    before = learner.context.detach().clone()
    sgd = torch.optim.SGD([learner.context], lr=1.0)
    losses = training_step(tiny_model, batch, sgd, accelerator, loss_weights=(0, 0.5))
    assert losses == pytest.approx((0, 0.5 * output.local_loss.item()), abs=1e-6)
    torch.testing.assert_close(before - learner.context.detach(), expected, atol=1e-6, rtol=1e-3)


def test_a_nan_stops_before_the_prompts_are_touched(tiny_model, accelerator):
    before = copy.deepcopy(tiny_model.prompt_learner.state_dict())
    batch = make_batch()
    batch["pixel_values"][2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="global_loss=nan"):
        training_step(tiny_model, batch, adam(tiny_model), accelerator)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.prompt_learner.state_dict().items())


def test_clipping_limits_the_step(tiny_model, accelerator):
    before = tiny_model.prompt_learner.context.detach().clone()
    parameters = [tiny_model.prompt_learner.context, tiny_model.prompt_learner.deep_prompts]
    deep = tiny_model.prompt_learner.deep_prompts.detach().clone()
    training_step(tiny_model, make_batch(), torch.optim.SGD(parameters, lr=1.0), accelerator, max_grad_norm=1e-3)
    moved = torch.cat(
        [
            (tiny_model.prompt_learner.context - before).flatten(),
            (tiny_model.prompt_learner.deep_prompts - deep).flatten(),
        ]
    )
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)
