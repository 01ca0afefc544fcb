"""Training: frozen features computed once, and the trainer of the prompts."""

from __future__ import annotations

import warnings

from .._lazy import find_export

# name -> module that defines it; imported when first asked for.
_WHERE = {
    "FeatureCache": "features",
    "NonFiniteLossError": "step",
    "PromptTrainer": "trainer",
    "PromptTrainingArguments": "arguments",
    "SyntheticAnomalies": "samples",
    "TrainingResult": "trainer",
    "TrainingSamples": "samples",
    "train_prompts": "trainer",
    "training_step": "step",
}
_FORMER = {"TrainingArguments": "PromptTrainingArguments"}  # for one release
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _FORMER:
        warnings.warn(f"{name} is now {_FORMER[name]}", FutureWarning, stacklevel=2)
        name = _FORMER[name]
    return find_export(__name__, _WHERE, name)


def __dir__():
    return __all__
