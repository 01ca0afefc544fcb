"""Training: frozen features computed once, and the trainer of the prompts."""

from __future__ import annotations

import importlib

# name -> module that defines it; imported when first asked for.
_WHERE = {
    "FeatureCache": "feature_cache",
    "NonFiniteLossError": "step",
    "PromptTrainer": "trainer",
    "SyntheticAnomalies": "samples",
    "TrainingArguments": "arguments",
    "TrainingResult": "trainer",
    "TrainingSamples": "samples",
    "train_prompts": "trainer",
    "training_step": "step",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__():
    return __all__
