"""`anomalyclip evaluate`: judge a model on labelled data sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..data.files import count_of, one_line
from ..data.options import ResizingOptions, SourceOptions, option
from ..evaluation.settings import EvaluationSettings
from ..scoring.calibration import METHODS, check_method
from .calibrate import CalibrationOptions, choose_thresholds, store_thresholds
from .loading import ModelOptions, load_model, load_processor, load_source, options_of_source
from .running import naming

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor

SHOTS = [0, 1, 4, 16]
OPTIMISTIC = "thresholds were chosen on the judged images: figures at them are optimistic; give --calibration-source"


@dataclass
class Settings(EvaluationSettings, CalibrationOptions, ModelOptions, ResizingOptions, SourceOptions):
    """Judge a model on labelled data sets: metrics, scores, a report.

    anomalyclip evaluate --model MODEL --sources mvtec=MVTec visa=VisA

    In several processes: accelerate launch -m anomalyclip_hf evaluate ... Exit status: 0 all was judged, 1 images
    could not be scored or results not be drawn, 2 an error, 130 and 143 interrupted and terminated: --resume goes on.
    """

    sources: list[str] | None = option(
        None, "NAME=FOLDER of data sets or own data, a folder, or 'synthetic'.", rule="source"
    )
    source: str | None = option(
        None, "One source instead: a data set's name, folder, table or repository.", group="Data set", rule="source"
    )
    split: str = option("test", "Split that is judged.", group="Data set")
    # Named as it always was; it hides the method of that name, which is called by its class.
    source_options: str | None = option(  # type: ignore[assignment]
        None, "JSON with more options of sources, or of drawing.", group="Data set"
    )
    baselines: bool = option(False, "Also judge CLIP without learning: clip, clip_ac, prompt_ensemble.")
    methods: list[str] | None = option(
        None,
        "Also judge these, in the same table: score=max mean, references=1 4 16, mutual (all if bare), resize=tile, "
        "baselines or one of them, ablations or one of them.",
    )
    ablations: list[str] | None = option(
        None, "Also judge parts: dpam=off qq kk vv, layers=6,12,18,24, layers=paper, deep_prompts=off; all if bare."
    )
    shots: list[int] | None = option(
        None, "Judge with so many references too, drawn from each class's own good images: 0 1 4 16 if bare."
    )
    profile: str | None = option(
        None, "Judge by a profile of the model; whole images, without its region of interest.", group="Model"
    )
    tokenizer: str | None = option(None, "Where the backbone's tokenizer lies; beside it by default.", group="Model")
    output_dir: str = option(
        "outputs/evaluation", "Folder for results.json, report, scores and maps.", short="o", rule="folder"
    )
    resume: bool = option(False, "Go on with an interrupted run in the output folder.")
    num_pictures: int = option(6, "Samples, misses and false alarms of each data set in the report.")
    calibrate: str | None = option(None, f"Choose thresholds first: {', '.join(METHODS)}.", group="Thresholds")
    calibration_source: str | None = option(
        None, "As one of the sources; the first of them by default.", group="Thresholds", rule="source"
    )
    calibration_split: str | None = option(
        None, "'train' for normal, 'test' otherwise, by default.", group="Thresholds"
    )
    save_thresholds: str | None = option(
        None, "Checkpoint to write them into, or a new folder for prompts.", group="Thresholds", rule="folder"
    )
    cpu: bool = option(False, "Use the CPU even if there is an accelerator.")
    disable_tqdm: bool = option(False, "Show no progress bars.")

    def __post_init__(self):
        super().__post_init__()
        super(EvaluationSettings, self).__post_init__()  # of the options that follow
        if not self.sources and not self.source:
            raise ValueError("sources is missing; give --sources NAME=FOLDER ..., or --source with --data-dir")
        if self.sources and self.source:
            raise ValueError(f"sources={self.sources} and source={self.source!r}; give one of the two")
        if self.calibrate is not None:
            check_method(self.calibrate, self.recall, "calibrate")
        elif self.recall is not None:
            raise ValueError(f"recall={self.recall} needs --calibrate recall")
        if self.shots is not None and not all(0 <= one <= 32 for one in self.shots):
            raise ValueError(f"shots={self.shots}; expected 0 to 32 references")
        if self.save_thresholds and not self.calibrate:
            raise ValueError("save_thresholds needs --calibrate, which chooses them")

    def texts(self) -> list[str]:
        """The sources as they were given."""
        return self.sources or [str(self.source)]

    def judged(self) -> dict[str, Any]:
        """Fields of `EvaluationSettings`."""
        return {field.name: getattr(self, field.name) for field in fields(EvaluationSettings)}


def run(settings: Settings, draw: Callable | None = None) -> int:
    """Judge a model; see [`Settings`] for the exit status.

    Args:
        settings ([`Settings`]).
        draw (callable, *optional*): as of [`load_source`].
    """
    from accelerate import Accelerator
    from transformers import AutoTokenizer

    from ..evaluation.baselines import OWN, parse_methods
    from ..evaluation.evaluator import evaluate_sources

    accelerator = Accelerator(cpu=settings.cpu)
    model = load_model(settings).to(accelerator.device)
    processor = load_processor(settings, model.config)
    if settings.profile:
        model.set_profile(settings.profile)
        settings.window = settings.window or model.profile.window
        settings.channels = settings.channels or model.profile.channels
    sources = _load_sources(settings, draw)
    words = [OWN, *(["baselines"] if settings.baselines else [])]
    if settings.ablations is not None:
        words += settings.ablations or ["ablations"]
    if settings.shots is not None:
        words += [f"references={number}" for number in settings.shots or SHOTS if number]
    if settings.methods is not None:
        words += settings.methods or ["helps"]
    methods = parse_methods(words, model)
    thresholds = _choose_thresholds(settings, model, processor, sources, draw) if settings.calibrate else None
    if settings.save_thresholds and accelerator.is_main_process:
        store_thresholds(settings.save_thresholds, model, processor)
    result = evaluate_sources(
        model,
        processor,
        sources,
        methods=methods,
        tokenizer=AutoTokenizer.from_pretrained(settings.tokenizer) if settings.tokenizer else None,
        accelerator=accelerator,
        output_dir=settings.output_dir,
        resume=settings.resume,
        show_progress=not settings.disable_tqdm,
        num_pictures=settings.num_pictures,
        thresholds=thresholds,
        **settings.judged(),
    )
    if accelerator.is_main_process:
        _report(result, settings.output_dir)
    left_out = any(entry["unreadable"] for entry in result["datasets"].values())
    return 1 if left_out or result.get("not_drawn") else 0


def _load_sources(settings: Settings, draw: Callable | None) -> dict[str, datasets.Dataset]:
    """All data sets of a command by name."""
    found: dict[str, datasets.Dataset] = {}
    for text in settings.texts():
        split = "test" if text == "synthetic" else settings.split  # drawn anew, it has no other
        name, dataset = load_source(text, split, draw, **_options(settings, text))
        if name in found:
            raise ValueError(f"two sources are named {name!r}: write NAME=FOLDER with different names")
        _check_labels(name, dataset)
        found[name] = dataset
    return found


def _check_labels(name: str, dataset: datasets.Dataset) -> None:
    """Refuse images without labels, and say where one of the two kinds is missing."""
    present = {label for label in dataset["label"] if label in (0, 1)}
    lacking = [word for label, word in enumerate(("normal", "anomalous")) if label not in present]
    told = f"{one_line(name)}: of {count_of(len(dataset), 'image')} none is labelled {' or '.join(lacking)}"
    if not present:
        raise ValueError(
            f"{told}, and without labels nothing can be judged: name the folders of normal images with "
            "normal_kinds=..., or give a table with a label column"
        )
    if lacking:
        print(f"warning: {told}; what tells the two apart can't be judged", file=sys.stderr)


def _options(settings: Settings, text: str) -> dict[str, Any]:
    drawn = "synthetic" in (*settings.texts(), settings.calibration_source)
    return options_of_source(settings, text, settings.source_options, drawn)


def _choose_thresholds(
    settings: Settings,
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    judged: Mapping[str, datasets.Dataset],
    draw: Callable | None,
) -> dict[str, Any]:
    """Set the model's thresholds from the calibration data.

    Returns:
        what was chosen and how; where the judged data sets share images with the calibration data, `warning` says so,
        and `judged_images_of` names them.
    """
    method = str(settings.calibrate)
    source = settings.calibration_source or settings.texts()[0]
    split = settings.calibration_split or ("train" if method == "normal" else "test")
    given = _options(settings, source)
    if settings.calibration_source:
        given.pop("class_names", None)  # those of the judged sources
    drawn = "calibration" if source == "synthetic" else split  # never the drawings that are judged
    with naming(split="calibration_split", method="calibrate"):
        name, dataset = load_source(source, drawn, draw, **given)
        found = choose_thresholds(settings, method, model, processor, dataset)
    shared = [] if source == "synthetic" else _sharing(settings, source, split, dataset, judged)
    warning = {"warning": OPTIMISTIC, "judged_images_of": shared} if shared else {}
    return {"source": name, "split": split, **warning, **found}


def _sharing(
    settings: Settings, source: str, split: str, dataset: datasets.Dataset, judged: Mapping[str, datasets.Dataset]
) -> list[str]:
    """Names of the judged data sets that hold images of the calibration data: the same files, or source and split."""
    files = {os.path.realpath(path) for path in dataset["path"] if os.path.isfile(path)}
    return [
        name
        for text, (name, other) in zip(settings.texts(), judged.items(), strict=True)
        if (text == source and (settings.split == split or "all" in (settings.split, split)))
        or any(os.path.realpath(path) in files for path in other["path"])
    ]


def _report(result: Mapping[str, Any], output_dir: str) -> None:
    from ..evaluation.results import short_table

    print(short_table(result))
    if warning := result.get("thresholds", {}).get("warning"):
        print(f"warning: {warning}", file=sys.stderr)
    for name, entry in result["datasets"].items():
        if at := entry.get("at_image_threshold"):
            shares = ", ".join(f"{key} {100 * at[key]:.1f}%" for key in ("recall", "false_alarm_rate") if key in at)
            print(f"\n{name} at image_threshold {at['threshold']:.4f}: {shares}")
        for one in entry["unreadable"]:
            print(f"skipped {name}: {one_line(one['error'])}", file=sys.stderr)
    for text in result.get("not_drawn", ()):
        print(f"not drawn: {one_line(text)}", file=sys.stderr)
    print(f"\nresults, scores and report: {output_dir}")
