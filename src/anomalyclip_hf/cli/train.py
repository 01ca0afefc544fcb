"""`anomalyclip train`: learn the prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..data.options import SourceOptions, option
from ..training.arguments import PromptTrainingArguments
from .checking import check_sources
from .loading import CheckpointOptions, load_model, load_processor, load_source, options_of_source
from .running import naming

if TYPE_CHECKING:
    import datasets

    from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor
    from ..modeling_anomalyclip import AnomalyCLIPModel

JSON_HELP = "JSON with further options of the source"


@dataclass
class Settings(PromptTrainingArguments, CheckpointOptions, SourceOptions):
    """Learn the two prompts on labelled images; the backbone stays as it is.

    anomalyclip train --model openai/clip-vit-large-patch14-336 --source visa --data-dir VisA --train-split test

    In several processes: accelerate launch -m anomalyclip_hf train ... The first run keeps the images' features; later
    ones are quick. Exit status: 0 done, 2 nothing learned, 130 and 143 interrupted and terminated: --resume goes on.
    """

    prompt_type: str | None = option(
        None,
        "'text': words; 'free': vectors in place of what the text tower would give. As the checkpoint's by default.",
        group="Model",
    )
    push_to_hub: str | None = option(None, "Hub repository that the learned prompts are sent to, when done.")
    source: str = option(
        None,
        "Training data: a data set's name, folder, table, repository, or 'synthetic'.",
        group="Data set",
    )
    train_split: str = option("train", "'test' to train on a test split, as the authors do.", group="Data set")
    # Named as it always was; it hides the method of that name, which is called by its class.
    source_options: str | None = option(None, f"{JSON_HELP}.", group="Data set")  # type: ignore[assignment]
    validation_source: str | None = option(
        None, "Data that choose the best epoch; never those trained on.", group="Validation"
    )
    validation_data_dir: str | None = option(None, "As --data-dir.", group="Validation", rule="path")
    validation_split: str = option("test", "As --train-split.", group="Validation")
    validation_class_names: list[str] | None = option(None, "As --class-names.", group="Validation")
    validation_options: str | None = option(None, f"{JSON_HELP}: kinds, labels, columns ...", group="Validation")

    def __post_init__(self):
        super().__post_init__()
        if not self.source:
            raise ValueError("source is missing; give --source")


def run(settings: Settings, draw: Callable[..., datasets.Dataset] | None = None) -> int:
    """Train, and share the prompts if that is asked for.

    Args:
        settings ([`Settings`]).
        draw (callable, *optional*): function `(split, **options)` that returns the data set `synthetic`, split
            "train" or "validation"; a checkout's scripts have one.
    """
    from accelerate import PartialState
    from accelerate.utils import set_seed

    from ..training import NonFiniteLossError, train_prompts

    check_sources(one for one in (settings.source, settings.validation_source) if one)
    set_seed(settings.seed)  # fresh prompts are drawn while loading
    model = load_model(settings)
    processor = load_processor(settings, model.config)
    if settings.push_to_hub:
        check_push(settings.push_to_hub, model, processor)
    train, validation = load_data(settings, draw)
    try:
        with naming(train_dataset="source", validation_dataset="validation_source"):
            result = train_prompts(model, processor, train, settings, validation)
    except NonFiniteLossError as error:
        raise RuntimeError(error) from error
    if PartialState().is_main_process:
        print(json.dumps(result.summary, indent=2))
        print(f"prompts, log and curves: {result.output_dir}")
        if settings.push_to_hub:
            card = {"training": result.card_facts}
            model.push_prompts_to_hub(settings.push_to_hub, processor=processor, card=card)
    return 0


def load_data(
    settings: Settings, draw: Callable[..., datasets.Dataset] | None = None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training set and validation set (or None) of a command; `draw` is that of [`run`]."""
    with naming(split="train_split", revision="source_options.revision"):
        train = _load(settings, settings.source, settings.source_options, settings.train_split, draw, "train")
    if settings.validation_source is None:
        return train, None
    own = SourceOptions(data_dir=settings.validation_data_dir, class_names=settings.validation_class_names)
    names = {field.name: f"validation_options.{field.name}" for field in fields(SourceOptions)}
    names |= {name: f"validation_{name}" for name in ("split", "data_dir", "class_names")}
    with naming(source_options="validation_options", **names):
        return train, _load(
            own, settings.validation_source, settings.validation_options, settings.validation_split, draw, "validation"
        )


def _load(
    options: SourceOptions, source: str, more: str | None, split: str, draw: Callable | None, drawn_split: str
) -> datasets.Dataset:
    drawn = source == "synthetic"
    given = options_of_source(options, source, more, drawn)
    return load_source(source, drawn_split if drawn else split, draw, **given)[1]


def check_push(repo_id: str, model: AnomalyCLIPModel, processor: AnomalyCLIPImageProcessor) -> None:
    """Find out before the training, and without contact, whether its prompts can be shared.

    Raises:
        ValueError: if `repo_id` is no name of a repository, others can't have the backbone, the Hub is not to be
            contacted, or nobody is logged in.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"push_to_hub={repo_id!r}, expected a repository such as 'user/name': {error}") from error
    try:
        model.push_prompts_to_hub(repo_id, processor=processor, card=False, dry_run=True)
    except ValueError as error:
        raise ValueError(f"push_to_hub={repo_id!r}: {error}") from error
    if constants.HF_HUB_OFFLINE or not get_token():
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "log in first: hf auth login"
        raise ValueError(f"push_to_hub={repo_id!r} can't be reached: {why}")
