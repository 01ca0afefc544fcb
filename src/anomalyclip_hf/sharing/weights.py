"""What is looked at in weights that were loaded: sizes, numbers of layers, and whether this CPU computes in them."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration_anomalyclip import AnomalyCLIPConfig

logger = logging.get_logger(__name__)


def check_weights(model: PreTrainedModel, name: str, info: dict[str, Any]) -> None:
    """Refuse weights of a backbone that are missing or of other sizes than the configuration's.

    Args:
        model: the model's own would be random.
        name: of the checkpoint, for messages.
        info: which keys are missing, mismatched or left over, as transformers' loading says.

    Raises:
        ValueError: naming a weight, and the fields that hold the sizes in which it differs.
    """
    config = model.config
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        stored, wanted = tuple(stored), tuple(wanted)
        raise ValueError(
            f"{key} has shape {stored} in the weights of {name}, but its configuration asks for {wanted}"
            f"{_fields_of(config, wanted, stored)}"
        )
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("prompt_learner.")):
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the model, such as {missing[0]}{_depth_of(model, missing[0])}; "
            "they would be random. Load a complete checkpoint."
        )
    left_over = sorted(key for key in info["unexpected_keys"] if _depth_of(model, key))
    if left_over:
        raise ValueError(
            f"{name} has {len(left_over)} weights of layers that the model lacks, such as {left_over[0]}"
            f"{_depth_of(model, left_over[0])}. Mend the configuration."
        )


def _depth_of(model: PreTrainedModel, key: str) -> str:
    """The field that says how many layers there are, in brackets; empty if the weight is of no layer of the model."""
    tower, _, layer = key.partition("_model.encoder.layers.")
    config = getattr(model.config, f"{tower}_config", None) if hasattr(model, f"{tower}_model") else None
    return f" ({tower}_config.num_hidden_layers={config.num_hidden_layers})" if layer and config else ""


def _fields_of(config: AnomalyCLIPConfig, wanted: tuple[int, ...], stored: tuple[int, ...]) -> str:
    """Fields of a configuration that hold the sizes in which two shapes differ, in brackets."""
    sizes = [one for one, other in zip(wanted, stored, strict=False) if one != other]
    towers = (("", config), ("text_config.", config.text_config), ("vision_config.", config.vision_config))
    found = [f"{start}{key}={value}" for start, one in towers for key, value in vars(one).items() if value in sizes]
    return f" ({', '.join(found)})" if found else ""


def is_emulated(dtype: torch.dtype) -> bool:
    """Whether this machine computes in a dtype on its CPU, and without instructions for it: about a hundred times
    slower than float32. So it is with float16 on any CPU, and with bfloat16 on those without AVX-512 or SVE."""
    if torch.accelerator.is_available():
        return False
    slow = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")
    return dtype == torch.float16 or (dtype == torch.bfloat16 and slow)


def use_float32_if_emulated(model: PreTrainedModel) -> None:
    """Cast a model that this machine could only emulate, and say so."""
    weights = [*model.parameters()]
    if (
        is_emulated(model.dtype)
        and not getattr(model, "is_quantized", False)
        and all(weight.device.type == "cpu" for weight in weights)
    ):
        logger.warning(
            f"{model.dtype} is only emulated on this CPU, and slow: the model is loaded in float32. "
            f"model.to({model.dtype}) afterwards uses it all the same"
        )
        model.float()
        model.config.dtype = torch.float32
