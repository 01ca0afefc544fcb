"""`anomalyclip calibrate`: choose thresholds."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import one_line
from ..data.options import ProfileOptions, ResizingOptions, SourceOptions, option
from ..export.engines import is_exported
from ..options_anomalyclip import READING, SIZE
from ..scoring.calibration import METHODS, check_method
from .loading import ComparingOptions, ModelOptions, load_model, load_processor, load_source, options_of_source

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor

SHARE = (1e-6, 1 - 1e-6)


@dataclass
class CalibrationOptions:
    """What a threshold is to promise."""

    false_alarm_rate: float = option(0.05, "Of new normal images, for 'normal'.", group="Thresholds", rule=SHARE)
    confidence: float = option(0.95, "That this rate is kept, for 'normal'.", group="Thresholds", rule=SHARE)
    pixel_rate: float = option(
        0.01,
        "Share of the pixels of a normal image that may be marked, for 'normal'.",
        group="Thresholds",
        rule=(0.0, SHARE[1]),
    )
    recall: float | None = option(None, "Wanted recall in (0, 1], for 'recall'.", group="Thresholds")


@dataclass
class Settings(CalibrationOptions, ProfileOptions, ComparingOptions, ModelOptions, ResizingOptions, SourceOptions):
    """Choose the thresholds of a model from images like those to come, none of them from a test set.

    anomalyclip calibrate good_parts/ --model MODEL --output-dir MODEL

    With --profile bottle they are written into profiles/bottle.json of the output directory, and those of the model
    and of other profiles stay; what the profile says already (region of interest, ...) is kept.

    From normal images alone (59 are enough for 5% false alarms), or from labelled ones with --method f1 or recall.
    Thresholds hold for one --resize: --output-dir stores it and the options of tiles beside them, for use with them.
    With --references or --score-rule they are for such scores alone; references among the images are left out.
    Exit status: 0 done, 1 images were left out, 2 no thresholds were found.
    """

    source: str | None = option(
        None,
        "Folder of normal images, or labelled data: name, folder, table, repository.",
        argument=True,
        rule="source",
    )
    method: str = option("normal", f"One of {', '.join(METHODS)}.")
    output_dir: str | None = option(
        None,
        "Checkpoint to write the thresholds into, or a new folder for prompts with them.",
        short="o",
        rule="folder",
    )
    split: str | None = option(None, "'train' for normal, if there is one; 'test' for others.", group="Data set")
    batch_size: int = option(8, "Images per forward.", rule=SIZE)
    num_workers: int = option(0, "Processes that decode images.", rule=range(SIZE.stop))
    cpu: bool = option(False, "Use the CPU even if there is an accelerator.")
    disable_tqdm: bool = option(False, "Show no progress bar.")

    def __post_init__(self):
        super().__post_init__()
        if not self.source:
            raise ValueError("source is missing; give a folder of normal images, or labelled data")
        if self.reference_weight is not None and not self.references:
            raise ValueError(f"reference_weight={self.reference_weight} needs --references")
        check_method(self.method, self.recall)
        if self.region_options() and not self.profile:
            raise ValueError("min_area and roi are kept in a profile; name it with profile=...")


def run(settings: Settings, draw: Callable | None = None) -> int:
    """Choose thresholds, print them and store them; see [`Settings`] for the exit status.

    Args:
        settings ([`Settings`]).
        draw (callable, *optional*): as of [`load_source`].
    """
    from accelerate import PartialState

    model = load_model(settings).to(PartialState(cpu=settings.cpu).device)
    processor = load_processor(settings, model.config)
    if settings.profile:
        _set_profile(model, settings, processor)
    else:
        model.config.score_rule = settings.score_rule or model.config.score_rule
        model.set_references(settings.make_references(model, processor))
    dataset = _load(settings, draw)
    skipped: list[str] = []
    found = choose_thresholds(settings, settings.method, model, processor, dataset, skipped)
    for error in skipped:
        print(f"skipped {one_line(error)}", file=sys.stderr)
    for name in ("image", "pixel"):
        facts = {key: value for key, value in (found[name] or {}).items() if key != "threshold"}
        numbers = {key: value for key, value in facts.items() if type(value) in (int, float)}
        shown = ", ".join(f"{key} {value:{'' if isinstance(value, int) else '.4g'}}" for key, value in numbers.items())
        if "is_guaranteed" in facts:
            shown += f", {'guaranteed' if facts['is_guaranteed'] else 'not guaranteed'}"
        threshold = getattr(model.profile or model.config, f"{name}_threshold")
        print(f"{name} threshold: {'none' if threshold is None else f'{threshold:.6g} ({shown})'}")
    if settings.output_dir:
        store_thresholds(settings.output_dir, model, processor)
        print(f"written to {settings.output_dir}")
    return 1 if skipped else 0


def _set_profile(model: AnomalyCLIPModel, settings: Settings, processor: AnomalyCLIPProcessor) -> None:
    """Set the profile that thresholds are chosen for: the one there is, or a new one, with what options say of it."""
    from ..image_processing_anomalyclip import with_resizing
    from ..scoring.profiles import Profile

    name = str(settings.profile)
    profile = model.get_profile(name) if name in model.profile_names else Profile(name)
    given = {**settings.region_options(), **settings.resizing()}
    scoring = ("reference_weight", "score_rule", *READING)
    given |= {name: value for name in scoring if (value := getattr(settings, name)) is not None}
    if settings.prompts:
        given["prompts"] = model.get_prompts()
    profile = replace(profile, **given)
    processor = with_resizing(processor, profile.options, model.config.vision_config.patch_size)
    settings.window, settings.channels = profile.window, profile.channels
    if (references := settings.make_references(model, processor)) is not None:
        profile.references = references  # type: ignore[assignment]
    model.set_profile(profile)


def choose_thresholds(
    settings: Any,
    method: str,
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    dataset: datasets.Dataset | list,
    skipped: list[str] | None = None,
) -> dict[str, Any]:
    """Set the thresholds of a model, as the options of a command say.

    Args:
        settings: has the fields of [`CalibrationOptions`], `batch_size`, `num_workers` and `disable_tqdm`.
        method: one of `METHODS`.
        model, processor, dataset, skipped: as of `scoring.calibrate`.

    Returns:
        what `scoring.calibrate` returns, and its arguments.
    """
    from ..scoring.thresholds import calibrate

    wanted = {"method": method, **{field.name: getattr(settings, field.name) for field in fields(CalibrationOptions)}}
    shared = {"batch_size": settings.batch_size, "num_workers": settings.num_workers}
    progress = not settings.disable_tqdm
    return wanted | calibrate(model, processor, dataset, **wanted, **shared, show_progress=progress, skipped=skipped)


def store_thresholds(folder: str, model: AnomalyCLIPModel, processor: AnomalyCLIPProcessor) -> None:
    """Write a model's thresholds, or its profile, into a checkpoint; save its prompts where there is none."""
    from ..scoring.thresholds import save_thresholds

    config = model.config
    if not Path(folder, "config.json").is_file() and is_exported(model.name_or_path):
        raise ValueError(f"output_dir={folder!r} has no model to keep thresholds of; give {model.name_or_path}")
    if model.profile is not None:
        profile = model.profile
        if not Path(folder, "config.json").is_file():
            model.set_profile(None)  # whose prompts are not the model's own
            model.save_prompts(folder, processor=processor)
            model.set_profile(profile)
        model.save_profiles(folder, [profile.name])
    elif Path(folder, "config.json").is_file():
        thresholds = (config.image_threshold, config.pixel_threshold)
        save_thresholds(folder, *thresholds, processor, thresholds_for=str(config.thresholds_for))
    else:
        model.save_prompts(folder, processor=processor)


def _load(settings: Settings, draw: Callable | None) -> datasets.Dataset | list:
    source = str(settings.source)
    given = options_of_source(settings, source)
    normal = settings.method == "normal"
    if source == "synthetic":
        return load_source(source, "calibration", draw, **given)[1]
    split = settings.split or ("train" if normal else "test")
    try:
        _, dataset = load_source(source, split, draw, **given)
    except ValueError:
        if settings.split or not normal:
            raise
        _, dataset = load_source(source, "test", draw, **given)
        print(f"{one_line(source)} has no split 'train': all its images count", file=sys.stderr)
    if settings.references:
        dataset = _without_references(dataset, settings.references)
    if normal and not any(label in (0, 1) for label in dataset["label"]):
        print(f"its {len(dataset)} images have no labels: all are taken as normal", file=sys.stderr)
        return list(dataset["path"])
    return dataset


def _without_references(dataset: datasets.Dataset, references: str) -> datasets.Dataset:
    """The data set without images that are among the references, whose own scores are lower than those of new ones."""
    from ..data.features import undecoded
    from ..data.images import ImageReadError, read_bytes
    from ..scoring.inputs import find_images

    def digest(cell: Mapping[str, Any]) -> str | None:
        try:
            return hashlib.sha256(read_bytes(cell)).hexdigest()
        except ImageReadError:  # told when it is scored
            return None

    files = [] if references.endswith(".safetensors") else find_images([references]).files
    known = {digest({"bytes": None, "path": str(path)}) for path, _ in files} - {None}
    rows = undecoded(dataset).select_columns(["image"])
    among = {index for index, row in enumerate(rows) if digest(row["image"]) in known} if known else set()
    if among:
        print(f"{len(among)} of its {len(dataset)} images are references: they are left out", file=sys.stderr)
    if len(among) == len(dataset):
        raise ValueError(f"references={references!r}: all images of the source are among them; give others")
    return dataset.select([index for index in range(len(dataset)) if index not in among])
