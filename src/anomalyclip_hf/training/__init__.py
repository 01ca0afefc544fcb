"""Training: frozen features computed once, and the trainer of the prompts."""

from __future__ import annotations

from .._lazy import find_export

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
    return find_export(__name__, _WHERE, name)


def __dir__():
    return __all__
