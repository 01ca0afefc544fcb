"""Pretraining of the embedded default: tokenizer, targets, loss, variation of drawings, checkpoints."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

import pretrain_data
import pretrainer
from anomalyclip_hf import AnomalyCLIPModel
from drawing.synthetic import HELD_OUT_CLASSES, TRAIN_CLASSES
from muon import Float32Muon, orthogonalize
from pretrain_augment import paste_foreign, relight, warp

CAPTIONS = ["a photo of a scratched blue metal plate", "object.", "damaged object.", "x x a flawless red tile"] * 20
SMALL = {
    "minutes": 10.0,
    "batch_size": 8,
    "first_batch_size": 8,
    "first_share": 0.0,
    "image_size": 40,
    "first_size": 40,
    "patch_size": 8,
    "depth": 2,
    "width": 32,
    "heads": 2,
    "text_depth": 1,
    "text_width": 32,
    "projection_dim": 16,
    "vocab_size": 700,
    "shards": ((24, 0.2, 5),),
    "draw_size": 48,
}


@pytest.fixture
def settings():
    return pretrain_data.PretrainSettings(**SMALL)


@pytest.fixture
def make(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(pretrain_data.DrawnImages.__init__, "__defaults__", (0,))
    return lambda: pretrainer.Pretrainer(tmp_path, settings)


def test_tokenizer_is_clip_s_own_kind(tmp_path):
    tokenizer = pretrain_data.train_tokenizer(CAPTIONS, 700)
    assert tokenizer.tokenize("X X damaged Object.") == ["x</w>", "x</w>", "damaged</w>", "object</w>", ".</w>"]
    ids = tokenizer("object.").input_ids
    assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
    assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1 == max(ids)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("a scratched zebra ü").input_ids == tokenizer("a scratched zebra ü").input_ids
    assert again.model_max_length == 77


def test_dense_targets_count_a_third_as_full():
    masks = torch.zeros(1, 1, 8, 12)
    masks[0, 0, :4, :1] = 1  # a quarter of the first patch of a 2 x 3 grid
    masks[0, 0, 4:, 8:] = 1
    targets = pretrainer.dense_targets(masks, 4)
    assert targets.tolist() == [[0.75, 0, 0, 0, 0, 1]]


def test_loss_of_perfect_and_of_swapped_embeddings(settings):
    axis = nn.functional.one_hot(torch.tensor([0, 1]), 16).float()
    index = torch.tensor([[0, 1], [0, 1]])
    masks = torch.zeros(2, 1, 40, 40)
    masks[1, :, :16, :16] = 1
    truth = (pretrainer.dense_targets(masks, 8) > 0).long()
    generic = torch.tensor([True, True])
    scale = torch.tensor(2.0)
    good, parts = pretrainer.pretraining_loss(axis, axis[truth], axis, index, generic, masks, scale, settings)
    bad, worse = pretrainer.pretraining_loss(
        axis.flip(0), axis[1 - truth], axis, index, generic, masks, scale, settings
    )
    assert parts["right"] == 1 and worse["right"] == 0
    assert parts["contrastive"] == 0
    assert parts["pair"] == pytest.approx(0.01 / 0.07, abs=1e-4)  # what label smoothing leaves
    assert parts["dense"] < 1e-4 and worse["dense"] > 10
    assert good < 0.3 < 10 < bad


def test_patches_at_defects_are_kept_and_flawless_images_keep_alike():
    torch.manual_seed(0)
    masks = torch.zeros(4, 1, 40, 40)
    masks[1, :, 9:15, 17:23] = 1  # one patch of 8 pixels, row 1, column 2
    kept = pretrainer.choose_patches(masks, 8, 0.4)
    assert kept.shape == (4, 10) and bool((kept.diff(dim=1) > 0).all())
    around = {row * 5 + column for row in (0, 1, 2) for column in (1, 2, 3)}
    assert all(around <= set(row.tolist()) for row in kept)
    free = pretrainer.choose_patches(masks[:1].repeat(64, 1, 1, 1), 8, 0.4)
    counts = torch.bincount(free.flatten(), minlength=25)
    assert free.shape == (64, 10) and counts.min() > 10 and counts.max() < 45


def test_dense_losses_of_kept_patches_are_those_of_the_patches(settings):
    masks = torch.zeros(1, 1, 40, 40)
    masks[:, :, :8, :8] = 1
    logits = torch.tensor([[2.0, -1.0]])
    dense, dice = pretrainer.dense_losses(logits, masks, settings, torch.tensor([[0, 7]]))
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    assert float(dense) == pytest.approx((3 * -math.log(p) - math.log(1 - q)) / 2, rel=1e-5)
    assert float(dice) == pytest.approx(1 - (2 * p + 1) / (p + q + 1 + 1), rel=1e-5)


def test_a_step_on_some_patches_moves_all_of_the_vision_tower(make, settings):
    settings.first_share, settings.keep_share = 1.0, 0.5
    trainer = make()
    assert trainer.done == 0
    before = {name: value.clone() for name, value in trainer.model.vision_model.named_parameters()}
    trainer.train_step()
    trainer.train_step()
    after = dict(trainer.model.vision_model.named_parameters())
    still = [name for name in before if torch.equal(before[name], after[name]) and not name.endswith("k_proj.bias")]
    assert not still


def test_all_kept_patches_are_the_whole_image(make):
    trainer = make()
    pixels, everything = torch.randn(2, 3, 40, 40), torch.arange(25).expand(2, -1)
    with torch.no_grad():
        for whole, kept in zip(
            trainer._forward_vision(pixels, None), trainer._forward_vision(pixels, everything), strict=True
        ):
            assert torch.equal(whole, kept)


def test_a_run_goes_on_from_another_model(make, settings, tmp_path):
    first = make()
    first.train_step()
    first.save_clip()
    settings.start_from = str(tmp_path / "clip")
    second = make()
    weight = first.mean["visual_projection.weight"].half().float()
    assert torch.equal(second.model.visual_projection.weight, weight)
    assert second.tokenizer("object.").input_ids == first.tokenizer("object.").input_ids
    settings.depth = 1
    with pytest.raises(ValueError, match=r"depth=1, but the model to go on from has 2 layers"):
        make()
    settings.depth, settings.width, settings.heads = 2, 48, 3
    with pytest.raises(RuntimeError, match="size mismatch"):
        make()


@pytest.mark.parametrize(("old", "new"), [(2, 3), (2, 5), (3, 4), (6, 9), (6, 12)])
def test_a_run_goes_on_with_more_layers(make, settings, tmp_path, old, new):
    """New layers change neither path until they are trained, and each of them can be."""
    settings.depth = old
    first = make()
    first.save_clip()
    with torch.no_grad():
        for mine in first.model.parameters():
            mine.copy_(mine.half())
    pixels = torch.randn(2, 3, settings.image_size, settings.image_size)
    expected = first._forward_vision(pixels, None)
    settings.start_from, settings.depth = str(tmp_path / "clip"), new
    second = make()
    answered = second._forward_vision(pixels, None)
    for mine, theirs in zip(answered, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    sum(part.square().sum() for part in answered).backward()
    silent = [layer for layer in second.model.vision_model.encoder.layers if not layer.mlp.fc2.weight.any()]
    assert len(silent) == new - old
    assert all(layer.mlp.fc2.weight.grad.abs().max() > 0 for layer in silent)


def test_a_run_goes_on_at_another_image_size(make, settings, tmp_path):
    """Positions are resized as the model itself resizes them for images of that size."""
    first = make()
    first.save_clip()
    side = settings.image_size + 2 * settings.patch_size
    settings.start_from, settings.image_size, settings.first_size = str(tmp_path / "clip"), side, side
    settings.draw_size = side
    second = make()
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        embeddings = (run.model.vision_model.embeddings for run in (first, second))
        for mine in first.model.parameters():
            mine.copy_(mine.half())
        expected, answered = (embed(pixels) for embed in embeddings)
    torch.testing.assert_close(answered, expected, rtol=0, atol=1e-6)
    assert answered.shape[1] == (side // settings.patch_size) ** 2 + 1


def test_float32_muon_is_torch_s_but_for_rounding():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (8, 24), (24, 8))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    first = Float32Muon(ours, lr=0.02, weight_decay=0.1)
    second = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        first.step()
        second.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=3e-3)


def test_orthogonalized_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((5, 12, 30), (5, 30, 12)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    with pytest.raises(ValueError, match=r"\(3,\).*matrices"):
        Float32Muon([nn.Parameter(torch.zeros(3))])


def test_classes_come_in_turn_and_nothing_held_out_does():
    turns = pretrain_data.class_mixture()
    assert set(turns) == set(TRAIN_CLASSES)
    assert turns.count("part") == 26 and turns.count("nut") == 2 and turns.count("wood") == 1


def test_contrastive_term_counts_equal_captions_as_one(settings):
    embeds = nn.functional.normalize(torch.ones(2, 16), dim=-1)
    arguments = (embeds, embeds[:, None].repeat(1, 25, 1), embeds, torch.tensor([[0, 1], [0, 1]]))
    _, parts = pretrainer.pretraining_loss(
        *arguments, torch.tensor([False, False]), torch.zeros(2, 1, 40, 40), torch.tensor(1.0), settings
    )
    assert parts["contrastive"] == pytest.approx(math.log(2), abs=1e-5)


def test_choose_captions_gives_generic_pairs_and_own_ones():
    pairs = [("a whole tile", "a cracked tile")] * 3
    texts, index = pretrain_data.choose_captions(
        pairs, torch.tensor([False, True, False]), np.random.default_rng(0), ["red", "blue"]
    )
    assert [texts[k] for k in index[0]] == ["a whole tile", "a cracked tile"]
    assert index[0].tolist() == index[2].tolist() != index[1].tolist()
    assert len(set(texts)) == len(texts) == 4
    assert len(texts[index[1, 0]]) > 0 and "tile" not in texts[index[1, 0]]


def test_warp_keeps_mask_on_its_place():
    torch.manual_seed(0)
    masks = torch.zeros(16, 1, 48, 48)
    masks[:, :, 12:30, 10:26] = 1
    images, warped = warp(masks.expand(-1, 3, -1, -1).clone(), masks, 40)
    assert images.shape == (16, 3, 40, 40) and warped.shape == (16, 1, 40, 40)
    assert torch.equal((images[:, :1] > 0.5).float(), warped)
    assert len({float(m.sum()) for m in warped}) > 4


def test_paste_foreign_marks_what_it_changed():
    torch.manual_seed(1)
    before = torch.rand(12, 3, 32, 32)
    images, masks = before.clone(), torch.zeros(12, 1, 32, 32)
    masks[0, :, 3:9, 3:9] = 1
    wanted = torch.ones(12, dtype=torch.bool)
    wanted[1] = False
    after = paste_foreign(images, masks, wanted)
    changed = (images - before).abs().amax((1, 2, 3)) > 0
    assert not changed[:2].any() and changed[2:].any()
    assert torch.equal(changed[2:], after[2:].flatten(1).sum(1) > 0)
    assert float(after[1].sum()) == 0 and float(after[0].sum()) == 36


def test_relight_stays_in_range_and_spares_colors_where_told():
    torch.manual_seed(2)
    images = torch.zeros(64, 3, 16, 16)
    images[:, 0] = 0.8
    lit = relight(images.clone(), torch.zeros(64, dtype=torch.bool))
    assert float(lit.min()) >= 0 and float(lit.max()) <= 1
    assert bool((lit[:, 0].mean((1, 2)) > lit[:, 1].mean((1, 2))).all())
    strong = relight(images.clone(), torch.ones(64, dtype=torch.bool))
    assert not bool((strong[:, 0].mean((1, 2)) > strong[:, 1].mean((1, 2)) + 0.05).all())


def test_training_saves_a_clip_that_anomalyclip_reads_alike(make, settings):
    trainer = make()
    for _ in range(3):
        parts = trainer.train_step()
    assert math.isfinite(parts["loss"]) and trainer.step == 3 and trainer.images_seen == 24
    info = trainer.save_clip()
    folder = trainer.folder / "clip"
    stored = json.loads((folder / "pretraining.json").read_text())
    assert stored["images_seen"] == info["images_seen"] == 24 and stored["settings"]["seed"] == 0

    clip = CLIPModel.from_pretrained(folder)
    assert clip.dtype == torch.float32
    weight = trainer.mean["visual_projection.weight"]
    assert torch.equal(clip.visual_projection.weight, weight.half().float())
    model = AnomalyCLIPModel.from_pretrained(folder, image_size=settings.image_size, dtype=torch.float32)
    assert model.config.dpam_layers == round(settings.depth * 19 / 24)
    trainer.model.load_state_dict(clip.state_dict())
    pixels = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        image, patches = (nn.functional.normalize(e, dim=-1) for e in trainer._forward_vision(pixels, None))
        ours = model.encode_images(pixels)
    assert torch.allclose(image, ours[0], atol=1e-5) and torch.allclose(patches, ours[1][:, 0], atol=1e-5)


def test_resumed_run_goes_on_as_if_never_stopped(make):
    whole = make()
    whole.train_step()
    whole.save_checkpoint()
    expected = [whole.train_step()["loss"] for _ in range(2)]
    resumed = make()
    assert resumed.resume()
    assert resumed.step == 1 and resumed.images_seen == 8
    assert [resumed.train_step()["loss"] for _ in range(2)] == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(resumed.mean["logit_scale"], whole.mean["logit_scale"])


def test_nothing_held_out_is_named(make):
    trainer = make()
    text = " ".join(trainer.drawings.captions())
    assert not [name for name in HELD_OUT_CLASSES if name.replace("_", " ") in text]
    assert not [name for name in HELD_OUT_CLASSES if f"{name}</w>" in trainer.tokenizer.get_vocab()]
