"""The command line of training, used by `scripts/train.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..cli import loading, running
from ..data.arguments import parse_options, source_arguments, split_options
from ..data.loading import refuse_drawn
from ..data.options import option
from .arguments import TrainingArguments

SETTINGS_SUFFIXES = (".json", ".yaml", ".yml")


@dataclass
class TrainCommand(TrainingArguments):
    """Everything `scripts/train.py` takes: the model and the data, and all of [`TrainingArguments`]."""

    model: str = option(None, "CLIP or AnomalyCLIP checkpoint, folder or Hub repository; 'demo' is the embedded one.")
    revision: str | None = option(None, "Revision of the checkpoint.")
    preset: str | None = option(None, "Feature layers: 'released' ([24] of 24) or 'paper' ([6, 12, 18, 24]).")
    image_size: int | None = option(None, "Side of the input in pixels (518 for ViT-L/14).")
    dtype: str | None = option(None, "Of the backbone: float32, bfloat16 or float16; the checkpoint's by default.")
    source: str = option(None, "Training data: a data set's name, folder, table, repository, or 'synthetic'.")
    data_dir: str | None = option(None, "The unpacked archive of a named data set.")
    train_split: str = option("train", "'test' to train on a test split, as the authors do.")
    kind: str | None = option(None, "Of the training data: folder, tree, table, meta, datasets, instead of looking.")
    class_names: list[str] | None = option(None, "Train on these classes alone.")
    normal_kinds: list[str] | None = option(None, "Folder names that mean normal.")
    normal_labels: list[str] | None = option(None, "Label values that mean normal.")
    mask_threshold: int | None = option(None, "Largest mask value that is background, 0 to 254.")
    image_column: str | None = option(None, "Name of the image column.")
    mask_column: str | None = option(None, "Name of the mask column.")
    label_column: str | None = option(None, "Name of the label column.")
    class_column: str | None = option(None, "Name of the class column.")
    defect_column: str | None = option(None, "Name of the defect column.")
    split_column: str | None = option(None, "Name of the split column.")
    source_options: str | None = option(
        None, "JSON with further arguments of load_anomaly_dataset, such as its revision."
    )
    validation_source: str | None = option(None, "Data that choose the best epoch; never those trained on.")
    validation_data_dir: str | None = option(None, "As data_dir.")
    validation_split: str = option("test", "As train_split.")
    validation_class_names: list[str] | None = option(None, "As class_names.")
    validation_options: str | None = option(
        None, "As source_options; takes normal_kinds and the columns of the validation data too."
    )
    push_to_hub: str | None = option(None, "Hub repository that the learned prompts are sent to, when done.")

    def __post_init__(self):
        super().__post_init__()
        for name in ("model", "source"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; give --{name}")


def parse_command(argv: Sequence[str] | None = None) -> TrainCommand:
    """Read the command line; a first argument ending in .json or .yaml is a settings file that flags override.

    Raises:
        ValueError: if the file names an unknown setting.
    """
    from transformers import HfArgumentParser

    rest = list(sys.argv[1:] if argv is None else argv)
    parser: Any = HfArgumentParser(TrainCommand, description="Learn AnomalyCLIP's prompts on labelled images.")
    if rest and rest[0].endswith(SETTINGS_SUFFIXES):
        parser.set_defaults(**read_settings(rest.pop(0)))
    return parser.parse_args_into_dataclasses(args=rest)[0]


def read_settings(path: str) -> dict[str, Any]:
    """Settings of a JSON or YAML file.

    Raises:
        ValueError: if it is no mapping, or names an unknown setting.
    """
    text = Path(path).read_text()
    if path.endswith(".json"):
        settings = json.loads(text)
    else:
        import yaml

        settings = yaml.safe_load(text)
    known = TrainCommand.__dataclass_fields__
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, expected names and values")
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"{path} has the unknown settings {unknown}; known ones: {', '.join(known)}")
    return settings


def load_model(command: TrainCommand):
    """Model and processor of a command.

    Returns:
        ([`AnomalyCLIPModel`], [`AnomalyCLIPProcessor`]).
    """
    from accelerate.utils import set_seed

    set_seed(command.seed)  # fresh prompts are drawn while loading
    model = loading.load_model(command)
    return model, loading.load_processor(command, model.config.image_size)


def load_data(command: TrainCommand, draw: Callable[..., Any] = refuse_drawn) -> tuple[Any, Any]:
    """Training set and validation set (or None) of a command; `draw` is that of [`main`]."""
    given = source_arguments(command)
    given.pop("revision", None)  # of the model here
    train = _load(
        command.source,
        command.data_dir,
        command.train_split,
        command.class_names,
        given | parse_options(command.source_options, "source_options"),
        partial(draw, "train"),
    )
    if command.validation_source is None:
        return train, None
    validation = _load(
        command.validation_source,
        command.validation_data_dir,
        command.validation_split,
        command.validation_class_names,
        parse_options(command.validation_options, "validation_options"),
        partial(draw, "validation"),
    )
    return train, validation


def _load(source: str, data_dir: str | None, split: str, classes: list[str] | None, further: dict, draw: Callable):
    from ..data import load_anomaly_dataset

    if classes:
        further["class_names"] = classes
    if source == "synthetic":
        return draw(**further)
    split_options(further, drawn=False)
    return load_anomaly_dataset(source, data_dir=data_dir, split=split, **further)


def main(argv: Sequence[str] | None = None, draw: Callable[..., Any] = refuse_drawn) -> int:
    """Run the command; errors of settings and data, and interruptions, are one line, without a traceback.

    Args:
        argv (*optional*): the process's own by default.
        draw (callable, *optional*): function `(split, **options)` that returns the data set `synthetic`, split
            "train" or "validation"; a checkout's scripts have one.
    """
    options = tuple(TrainCommand.__dataclass_fields__)
    return running.run_until_interrupted(lambda words: _train(words, draw), argv, options=options)


def _train(argv: Sequence[str] | None, draw: Callable[..., Any]) -> int:
    from .step import NonFiniteLossError
    from .trainer import train_prompts

    command = parse_command(argv)
    model, processor = load_model(command)
    if command.push_to_hub:
        check_push(command.push_to_hub, model, processor)
    train, validation = load_data(command, draw)
    try:
        result = train_prompts(model, processor, train, command, validation)
    except NonFiniteLossError as error:
        raise RuntimeError(error) from error
    if _is_main_process():
        print(json.dumps(result.summary, indent=2))
        print(f"prompts, log and curves: {result.output_dir}")
        if command.push_to_hub:
            card = {"training": result.card_facts}
            model.push_prompts_to_hub(command.push_to_hub, processor=processor, card=card)
    return 0


def check_push(repo_id: str, model, processor) -> None:
    """Find out before the training, and without contact, whether its prompts can be shared.

    Raises:
        ValueError: if `repo_id` is no name of a repository, or others can't have the backbone.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"push_to_hub={repo_id!r}, expected a repository such as 'user/name': {error}") from error
    try:
        model.push_prompts_to_hub(repo_id, processor=processor, card=False, dry_run=True)
    except ValueError as error:
        raise ValueError(f"push_to_hub={repo_id!r}: {error}") from error


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
