"""The model, the processor and the data sets that options of a command name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import check_name
from ..data.options import ResizingOptions, SourceOptions, option, parse_options, refuse_unknown
from ..export.engines import is_exported
from ..options_anomalyclip import READING
from .running import dashed

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPConfig, AnomalyCLIPModel, AnomalyCLIPProcessor
    from ..sharing.references import References


DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class BackboneOptions:
    """The checkpoint of a command."""

    model: str = option("demo", "CLIP or AnomalyCLIP checkpoint, folder or repository; 'demo': embedded.", short="m")
    dtype: str | None = option(
        None, f"Of the weights: {', '.join(DTYPES[1:])}; the checkpoint's by default.", group="Model"
    )


@dataclass
class CheckpointOptions(BackboneOptions):
    """The checkpoint of a command, and what overrides it; None leaves a setting as the checkpoint has it."""

    revision: str | None = option(None, "Revision of the checkpoint.", group="Model")
    preset: str | None = option(
        None, "Feature layers: 'released' ([24] of 24) or 'paper' ([6, 12, 18, 24]).", group="Model"
    )
    image_size: int | None = option(None, "Side of the input in pixels (518 for ViT-L/14).", group="Model")


@dataclass
class ModelOptions(CheckpointOptions):
    """A checkpoint, and prompts in place of its own."""

    prompts: str | None = option(
        None, "Folder or repository of learned prompts to put on the model.", short="p", group="Model"
    )


@dataclass
class ComparingOptions:
    """What the score of an image is made of."""

    references: str | None = option(
        None,
        "Folder of 1 to 32 images of good parts to compare with, or a file of save_references.",
        group="Score",
        rule="path",
    )
    reference_weight: float | None = option(
        None, "Of the prompts' own map and score beside references; 0.1.", group="Score"
    )
    max_patches: int | None = option(
        None, "Patches of the references that are kept.", group="Score", rule=range(1, 2**31)
    )
    score_rule: str | None = option(
        None, "Score of an image: global (of the image), max (of its map) or mean (of both).", group="Score"
    )

    def make_references(self, model: AnomalyCLIPModel, processor: AnomalyCLIPProcessor) -> References | None:
        """The references that are asked for, prepared by a processor.

        Raises:
            ValueError: `max_patches` without references, or what can't be used.
        """
        if self.references is None:
            if self.max_patches is not None:
                raise ValueError(f"max_patches={self.max_patches} needs --references")
            return None
        limit = {} if self.max_patches is None else {"max_patches": self.max_patches}
        reading = {name: getattr(self, name, None) or getattr(model.profile, name, None) for name in READING}
        return model.make_references(self.references, self.reference_weight, processor=processor, **limit, **reading)


def load_model(command: BackboneOptions) -> AnomalyCLIPModel:
    """The model of a command, with what its options override.

    Args:
        command: any of the above, also with `prompts` or a `prompt_type`.

    Raises:
        ValueError: an unknown `dtype`, or an option that an exported model has no use for.
    """
    from .. import AnomalyCLIPModel
    from ..configuration_anomalyclip import feature_layers_of_preset
    from ..export import ExportedModel

    if command.dtype not in (None, *DTYPES):
        raise ValueError(f"dtype={command.dtype!r}, expected one of {', '.join(DTYPES)}")
    own = fields(CheckpointOptions if isinstance(command, CheckpointOptions) else BackboneOptions)
    overrides = {field.name: getattr(command, field.name) for field in own if field.name != "model"}
    overrides |= {"prompt_type": getattr(command, "prompt_type", None)}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    prompts, folder = getattr(command, "prompts", None), _checkpoint(command)
    if is_exported(folder):
        given = [*overrides, *(["prompts"] if prompts else [])]
        if given and overrides != {"dtype": "auto"}:
            shown = ", ".join(map(dashed, given))
            raise ValueError(
                f"{folder} is an exported model, whose graph is fixed: leave out {shown}, or export again"
            )
        return ExportedModel(folder)  # type: ignore[return-value]
    model = AnomalyCLIPModel.from_pretrained(folder, **overrides)
    if prompts:
        model.load_prompts(prompts)
        # Prompts bring their own settings; what the user says goes before them.
        if "image_size" in overrides:
            model.config.image_size = overrides["image_size"]
        if preset := overrides.get("preset"):
            if model.config.prompt_type == "free":
                raise ValueError(f"preset={preset!r}, but free prompts belong to the layers they learned on")
            depth = model.config.vision_config.num_hidden_layers
            model.config.feature_layers = feature_layers_of_preset(preset, depth)
    return model


def load_processor(command: CheckpointOptions, config: AnomalyCLIPConfig) -> AnomalyCLIPProcessor:
    """The processor of a command, at the image size of a model's configuration; of squares where it has no options."""
    from .. import AnomalyCLIPProcessor

    settings: dict[str, Any] = {"size": {"height": config.image_size, "width": config.image_size}}
    if command.revision:
        settings["revision"] = command.revision
    settings |= command.resizing() if isinstance(command, ResizingOptions) else {"resize": "square"}
    processor = AnomalyCLIPProcessor.from_pretrained(_checkpoint(command), **settings)
    if processor.resize != "square":
        processor.patch_size = config.vision_config.patch_size
    return processor


def load_source(
    text: str, split: str = "test", draw: Callable | None = None, **given: Any
) -> tuple[str, datasets.Dataset]:
    """Load one data set of the command line.

    Args:
        text (`str`): `NAME=FOLDER` (a data set of `LAYOUTS` and its unpacked archive, or own data under a name), what
            `load_anomaly_dataset` takes, or `synthetic`.
        split (`str`): as of `load_anomaly_dataset`.
        draw (callable, *optional*): function `(split, **options)` that returns the data set `synthetic`; a checkout's
            scripts have one.
        **given: fields of `SourceOptions`; for `synthetic` what `draw` takes.

    Returns:
        its name and the data set.

    Raises:
        ValueError: the name is no plain name, or the data set can't be loaded.
    """
    from ..data import find_layout, load_anomaly_dataset

    if text == "synthetic":
        return text, draw(split, **given) if draw else load_anomaly_dataset(text)
    name, is_named, folder = text.partition("=")
    if not is_named or os.path.exists(text):
        layout = find_layout(text) if given.get("data_dir") else None
        name = layout.name if layout is not None else Path(os.path.abspath(text)).name
        check_name(name, f"{text!r} (write NAME=FOLDER): its name")
        return name, load_anomaly_dataset(text, split=split, **given)
    if not name or not folder:
        raise ValueError(f"{text!r}: expected NAME=FOLDER")
    check_name(name, f"{text!r}: the name")
    if find_layout(name) is not None:
        return name, load_anomaly_dataset(name, split=split, **{**given, "data_dir": folder})
    given.pop("data_dir", None)  # of another source
    return name, load_anomaly_dataset(folder, split=split, **given)


def options_of_source(settings: SourceOptions, text: str, more: str | None = None, drawn: bool = False) -> dict:
    """What [`load_source`] takes beside a source: the options of a command, and a JSON object of more of them.

    Args:
        settings: whose `revision` is that of a checkpoint.
        text: the source; "synthetic" takes class names and what only drawing knows.
        more: the JSON object, for all sources of the command.
        drawn: whether "synthetic" is among them, which refuses by itself what it does not take.

    Raises:
        ValueError: `more` is no JSON object, or has a name that none of the sources takes.
    """
    known = [field.name for field in fields(SourceOptions)]
    given = SourceOptions.source_options(settings)
    given.pop("revision", None)
    stated = parse_options(more, "source_options")
    if not drawn:
        refuse_unknown(stated, known)
    for_drawing = {name: value for name, value in stated.items() if name not in known}
    if text == "synthetic":
        classes = given.get("class_names")
        return for_drawing | ({"class_names": classes} if classes else {})
    return given | {name: value for name, value in stated.items() if name in known}


def _checkpoint(command: BackboneOptions) -> str:
    from .. import demo_checkpoint

    return demo_checkpoint() if command.model == "demo" else command.model
