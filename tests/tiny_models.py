"""Small random CLIPs, and the names of the authors' cases."""

import torch

GOLDEN_CASES = ("native_last_layer", "resized_multi_layer")

TINY_TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "bos_token_id": 97,
    "eos_token_id": 98,
}
TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 16,
}


def randomize(model: torch.nn.Module, seed: int = 0, scale: float = 1.0) -> torch.nn.Module:
    """Give weights large enough that every part of a tiny model shows in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim < 2:
                parameter.copy_(0.2 * noise)
            elif "embedding" in name or "prompt_learner" in name:
                parameter.copy_(0.5 * scale * noise)
            else:
                parameter.copy_(scale * noise / parameter[0].numel() ** 0.5)
    return model


def make_tiny_clip(text: dict | None = None, vision: dict | None = None, seed: int = 0):
    """A random `CLIPModel` of about 60 thousand parameters; `text` and `vision` override its sizes."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={**TINY_TEXT, **(text or {})}, vision_config={**TINY_VISION, **(vision or {})}, projection_dim=16
    )
    return randomize(CLIPModel(config), seed).eval()
