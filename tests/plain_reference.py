"""The method of AnomalyCLIP in a few plain lines of its own, to check the package against. Float64, no tricks."""

import torch
import torch.nn.functional as F


def _activation(name, x):
    return x * torch.sigmoid(1.702 * x) if name == "quick_gelu" else F.gelu(x)


def _norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-5)


def _linear(w, name, x):
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])


def _attend(w, name, heads, q, k, v, causal=False):
    outputs = []
    for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = q_h @ k_h.transpose(-1, -2) * q_h.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        outputs.append(scores.softmax(-1) @ v_h)
    return _linear(w, name + ".out_proj", torch.cat(outputs, -1))


def _layer(w, name, sub, x, causal=False, refined=None, variant=None):
    h = _norm(w, name + ".layer_norm1", x)
    parts = {p: _linear(w, f"{name}.self_attn.{p}_proj", h) for p in "qkv"}
    heads = sub.num_attention_heads
    if variant:
        token = parts[variant[0]]
        refined = (x if refined is None else refined) + _attend(
            w, name + ".self_attn", heads, token, token, parts["v"]
        )
    x = x + _attend(w, name + ".self_attn", heads, parts["q"], parts["k"], parts["v"], causal)
    h = _activation(sub.hidden_act, _linear(w, name + ".mlp.fc1", _norm(w, name + ".layer_norm2", x)))
    return x + _linear(w, name + ".mlp.fc2", h), refined


def encode_text(w, config, context, deep_prompts):
    """Text embeddings (2, P) of the two prompts."""
    tokens = w["text_model.embeddings.token_embedding.weight"][torch.tensor(config.prompt_token_ids)]
    length = context.shape[1]
    x = torch.cat([tokens[:, :1], context, tokens[:, 1 + length :]], 1)
    x = x + w["text_model.embeddings.position_embedding.weight"][: x.shape[1]]
    for i in range(config.text_config.num_hidden_layers):
        if 1 <= i < config.deep_prompt_depth:
            count = deep_prompts.shape[1]
            x = torch.cat([x[:, :1], deep_prompts[i - 1].expand(2, -1, -1), x[:, 1 + count :]], 1)
        x, _ = _layer(w, f"text_model.encoder.layers.{i}", config.text_config, x, causal=True)
    x = _norm(w, "text_model.final_layer_norm", x)
    ends = [max(range(len(row)), key=row.__getitem__) for row in config.prompt_token_ids]
    return F.normalize(F.linear(x[[0, 1], ends], w["text_projection.weight"]), dim=-1)


def encode_image(w, config, pixel_values):
    """Image embeddings (B, P) and a list of patch embeddings (B, N, P), one for each feature layer."""
    vision, name = config.vision_config, "vision_model.embeddings."
    patches = F.conv2d(pixel_values, w[name + "patch_embedding.weight"], stride=vision.patch_size)
    side, grid = vision.image_size // vision.patch_size, patches.shape[-2:]
    positions = w[name + "position_embedding.weight"]
    square = positions[1:].T.reshape(1, -1, side, side)
    square = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)
    x = torch.cat([w[name + "class_embedding"].expand(len(patches), 1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + torch.cat([positions[:1], square.flatten(2)[0].T])
    x = _norm(w, "vision_model.pre_layrnorm", x)
    refined, features = None, []
    for number in range(1, vision.num_hidden_layers + 1):
        variant = config.dpam_attention if number > vision.num_hidden_layers - config.dpam_layers else None
        x, refined = _layer(
            w, f"vision_model.encoder.layers.{number - 1}", vision, x, refined=refined, variant=variant
        )
        if number in config.feature_layers:
            feature = _norm(w, "vision_model.post_layernorm", refined if variant else x)
            features.append(F.normalize(F.linear(feature, w["visual_projection.weight"])[:, 1:], dim=-1))
    return F.normalize(F.linear(x[:, 0], w["visual_projection.weight"]), dim=-1), features


def score(config, image, patches, text, size):
    """Logits (B, 2) and similarity maps (B, M, 2, H, W)."""
    grid = [side // config.vision_config.patch_size for side in size]
    maps = []
    for layer in patches:
        p = (layer @ text.T / config.temperature).softmax(-1)
        p = p.transpose(1, 2).reshape(len(p), 2, *grid)
        maps.append(F.interpolate(p, size=size, mode="bilinear", align_corners=False))
    return image @ text.T / config.temperature, torch.stack(maps, 1)


def loss(logits, maps, labels, masks):
    """Global and local loss (method, section 4)."""
    log_p = logits.log_softmax(-1)
    global_loss = -sum(log_p[i, label] for i, label in enumerate(labels)) / len(labels)
    local = 0
    for m in range(maps.shape[1]):
        normal, anomalous = maps[:, m, 0], maps[:, m, 1]
        hot = torch.stack([1 - masks, masks], 1).clamp(1e-5, 1 - 1e-5)
        pt = (hot * maps[:, m]).sum(1) + 1e-5
        local = local - ((1 - pt) ** 2 * pt.log()).mean()
        for p, y in ((anomalous, masks), (normal, 1 - masks)):
            per_image = [1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, y, strict=True)]
            local = local + sum(per_image) / len(per_image)
    return global_loss, 4 * local


def weights_of(model):
    """The model's weights in float64, under their own names."""
    return {name: value.detach().double() for name, value in model.state_dict().items()}


def forward(model, pixel_values, context=None, deep_prompts=None):
    """All outputs of `model` on `pixel_values`, computed here; prompts may be given as tensors with gradients."""
    w, config = weights_of(model), model.config
    context = w["prompt_learner.context"] if context is None else context
    deep_prompts = w["prompt_learner.deep_prompts"] if deep_prompts is None else deep_prompts
    text = encode_text(w, config, context, deep_prompts)
    image, patches = encode_image(w, config, pixel_values.double())
    logits, maps = score(config, image, patches, text, tuple(pixel_values.shape[-2:]))
    return {
        "text_embeds": text,
        "image_embeds": image,
        "patch_embeds": torch.stack(patches, 1),
        "logits": logits,
        "similarity_maps": maps,
        "anomaly_maps": maps[:, :, 1].mean(1),
    }
