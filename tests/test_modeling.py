"""The model's numbers: against the authors' program, a plain reference and CLIP itself."""

import pytest
import torch
from torch.testing import assert_close

from anomalyclip_hf import AnomalyCLIPConfig, AnomalyCLIPModel, compute_similarity_maps
from plain_reference import forward as plain_forward
from plain_reference import loss as plain_loss
from tiny_models import GOLDEN_CASES, TINY_TEXT, TINY_VISION, make_tiny_clip, randomize

OUTPUTS = ("text_embeds", "image_embeds", "patch_embeds", "logits", "similarity_maps", "anomaly_maps")


def make_model(text=None, vision=None, attn="sdpa", seed=0, **fields) -> AnomalyCLIPModel:
    config = AnomalyCLIPConfig(
        text_config={**TINY_TEXT, **(text or {})},
        vision_config={**TINY_VISION, **(vision or {})},
        projection_dim=16,
        **{"image_size": 42, "prompt_length": 5, "deep_prompt_length": 2, **fields},
    )
    return randomize(AnomalyCLIPModel._from_config(config, attn_implementation=attn), seed).eval()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_equals_the_authors_program(load_golden, case, attn):
    golden = load_golden(case)
    model, expected = golden.model(attn), golden.tensors
    output = model(**golden.inputs)
    for name in ("image_embeds", "text_embeds", "logits", "global_loss", "local_loss"):
        assert_close(output[name], expected["out." + name], rtol=1e-5, atol=1e-5)
    maps = output.similarity_maps
    assert_close(maps[..., ::3, ::3], expected["out.similarity_maps"], rtol=0, atol=1e-5)
    assert_close(output.anomaly_maps, maps[:, :, 1].mean(1), rtol=0, atol=1e-7)
    assert_close(output.loss, output.global_loss + output.local_loss)

    output.loss.backward()
    learner = model.prompt_learner
    gradients = {
        "ctx_normal": learner.context.grad[0],
        "ctx_abnormal": learner.context.grad[1],
        "deep_prompts": learner.deep_prompts.grad,
    }
    for name, gradient in gradients.items():
        wanted = expected["grad." + name]
        assert (gradient - wanted).norm() <= 1e-3 * wanted.norm(), name


CONFIGURATIONS = {
    "default": {},
    "no_dpam": {"dpam_layers": 0, "feature_layers": [1, 4]},
    "every_layer_dpam": {"dpam_layers": 4, "feature_layers": [1, 2, 3, 4]},
    "one_dpam_layer": {"dpam_layers": 1, "feature_layers": [2, 4]},
    "qq": {"dpam_attention": "qq", "feature_layers": [3, 4]},
    "kk": {"dpam_attention": "kk", "feature_layers": [3, 4]},
    "features_end_early": {"dpam_layers": 3, "feature_layers": [1, 3]},
    "features_below_dpam": {"dpam_layers": 2, "feature_layers": [1]},
    "no_deep_prompts": {"deep_prompt_depth": 1},
    "deep_prompts_everywhere": {"deep_prompt_depth": 4, "deep_prompt_length": 6, "prompt_length": 9},
    "deep_prompts_cover_words": {"deep_prompt_length": 7, "prompt_length": 3, "prompt_words": 6},
    "one_word": {"prompt_length": 1, "deep_prompt_length": 1},
    "temperature": {"temperature": 0.5},
    "patch_4": {"vision": {"patch_size": 4, "image_size": 16}, "image_size": 24},
    "native_size": {"image_size": 28},
    "gelu": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
    "openai_eos": {"text": {"eos_token_id": 2}},
    "other_depths": {"text": {"num_hidden_layers": 2}, "vision": {"num_hidden_layers": 7, "num_attention_heads": 4}},
    "other_widths": {"text": {"hidden_size": 24, "num_attention_heads": 3}},
}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_equals_a_plain_reference(name, attn):
    fields = dict(CONFIGURATIONS[name])
    if words := fields.pop("prompt_words", 0):
        row = [97] + [0] * (fields["prompt_length"] + words) + [98]
        fields["prompt_token_ids"] = [row + [0] * (77 - len(row)), row[:-2] + [98] + [0] * (78 - len(row))]
    model = make_model(attn=attn, **fields)
    side = model.config.image_size
    patch = model.config.vision_config.patch_size
    pixel_values = torch.randn(3, 3, side - patch, side, generator=torch.Generator().manual_seed(3))  # not square
    with torch.no_grad():
        output, expected = model(pixel_values=pixel_values), plain_forward(model, pixel_values)
    for key in OUTPUTS:
        assert_close(output[key].double(), expected[key], rtol=0, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    assert (output.text_embeds[0] - output.text_embeds[1]).abs().max() > 1e-3


def test_prompts_after_the_words_matter():
    """The two prompts differ in their fixed words too, not only in the learned ones."""
    row = [97, 0, 0, 0, 0, 0, 5, 6, 98]
    ids = [[*row, *[0] * 68], [97, 0, 0, 0, 0, 0, 7, 5, 6, 98, *[0] * 67]]
    model = make_model(prompt_token_ids=ids)
    model.prompt_learner.context.data[1] = model.prompt_learner.context.data[0]
    with torch.no_grad():
        embeds = model.get_prompt_embeds()
        expected = plain_forward(model, torch.zeros(1, 3, 42, 42))["text_embeds"]
    assert_close(embeds.double(), expected, rtol=0, atol=1e-5)
    assert (embeds[0] - embeds[1]).abs().max() > 1e-2


def test_a_batch_equals_its_images_one_by_one(tiny_model):
    pixel_values = torch.randn(5, 3, 42, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = tiny_model(pixel_values=pixel_values)
        for index in range(5):
            alone = tiny_model(pixel_values=pixel_values[index : index + 1])
            for key in ("logits", "similarity_maps", "patch_embeds"):
                assert_close(together[key][index], alone[key][0], rtol=0, atol=1e-5)


def test_without_dpam_patches_are_plain_clip(tiny_clip_dir):
    """CLIP's own last hidden state, through CLIP's own norm and projection."""
    clip = make_tiny_clip()
    model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, image_size=28, dpam_layers=0)
    pixel_values = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = clip.vision_model(pixel_values=pixel_values).last_hidden_state
        patches = clip.visual_projection(clip.vision_model.post_layernorm(states[:, 1:]))
        image = clip.visual_projection(states[:, 0])  # unlike CLIP: no post_layernorm
        image_embeds, patch_embeds = model.encode_images(pixel_values)
    assert_close(patch_embeds[:, 0], torch.nn.functional.normalize(patches, dim=-1), rtol=0, atol=1e-6)
    assert_close(image_embeds, torch.nn.functional.normalize(image, dim=-1), rtol=0, atol=1e-6)


def test_prompts_of_plain_words_are_plain_clip(tiny_clip_dir):
    """With the words' own embeddings as learned words and no deep prompts, the text tower is CLIP's."""
    clip = make_tiny_clip()
    ids = [[97, 11, 12, 13, 21, 98], [97, 14, 15, 16, 22, 98]]
    fields = {"prompt_token_ids": ids, "prompt_length": 3, "deep_prompt_depth": 1}
    model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, image_size=28, **fields)
    with torch.no_grad():
        model.prompt_learner.context.copy_(clip.text_model.embeddings.token_embedding(torch.tensor(ids)[:, 1:4]))
        pooled = clip.text_model(input_ids=torch.tensor(ids)).pooler_output
        expected = torch.nn.functional.normalize(clip.text_projection(pooled), dim=-1)
        assert_close(model.get_prompt_embeds(), expected, rtol=0, atol=1e-6)


def test_five_adam_steps_equal_an_independent_program(tiny_model):
    """Loss, gradients and updates, worked out by the plain reference and a hand-written Adam."""
    generator = torch.Generator().manual_seed(5)
    pixel_values = torch.randn(4, 3, 42, 42, generator=generator)
    masks = torch.zeros(4, 42, 42)
    masks[1, 3:20, 10:30], masks[3, 30:, :9] = 1, 1
    labels = torch.tensor([0, 1, 0, 1])
    learner = tiny_model.prompt_learner
    plain = [p.detach().double().clone() for p in (learner.context, learner.deep_prompts)]
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, betas=(0.5, 0.999))

    first, second = [torch.zeros_like(p) for p in plain], [torch.zeros_like(p) for p in plain]
    for step in range(1, 6):
        output = tiny_model(pixel_values=pixel_values, labels=labels, masks=masks)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()

        variables = [p.requires_grad_() for p in plain]
        answer = plain_forward(tiny_model, pixel_values, *variables)
        expected = sum(plain_loss(answer["logits"], answer["similarity_maps"], labels, masks.double()))
        gradients = torch.autograd.grad(expected, variables)
        assert_close(output.loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
        plain = []
        for i, (p, g) in enumerate(zip(variables, gradients, strict=True)):
            first[i], second[i] = 0.5 * first[i] + 0.5 * g, 0.999 * second[i] + 0.001 * g * g
            m, v = first[i] / (1 - 0.5**step), second[i] / (1 - 0.999**step)
            plain.append((p - 1e-3 * m / (v.sqrt() + 1e-8)).detach())
    for learned, wanted in zip((learner.context, learner.deep_prompts), plain, strict=True):
        assert_close(learned.detach().double(), wanted, rtol=0, atol=2e-5)
        assert (learned.detach().double() - wanted).abs().mean() < 1e-6


def test_similarity_maps_on_a_grid_that_is_not_square():
    """One row of patches: 1 x 2 patches of width 2, worked out by hand."""
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    patches = torch.tensor([[[[0.6, 0.8], [1.0, 0.0]]]])  # (1, 1, 2, 2)
    maps = compute_similarity_maps(patches, text, 0.5, (1, 2), (2, 4))
    left = 1 / (1 + torch.tensor((0.6 - 0.8) / 0.5).exp())  # P(anomalous) of the left patch
    right = 1 / (1 + torch.tensor(1.0 / 0.5).exp())
    row = torch.stack([left, 0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right, right])
    assert maps.shape == (1, 1, 2, 2, 4)
    assert_close(maps[0, 0, 1], torch.stack([row, row]))
    assert_close(maps[0, 0, 0], 1 - torch.stack([row, row]))


def test_similarity_maps_keep_rows_and_columns_apart():
    """2 x 3 patches, only the one at row 1, column 2 anomalous: it must come out at the lower right."""
    text = torch.eye(2)
    patches = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    patches[5] = torch.tensor([0.0, 1.0])
    maps = compute_similarity_maps(patches[None, None], text, 0.07, (2, 3), (2, 3))
    expected = torch.zeros(2, 3)
    expected[1, 2] = 1
    assert_close(maps[0, 0, 1], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"6 patches but grid_size=\(2, 2\)"):
        compute_similarity_maps(patches[None, None], text, 0.07, (2, 2), (2, 3))
