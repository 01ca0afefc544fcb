"""The command line of `scripts/evaluate.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..cli import loading, running
from ..configuration_anomalyclip import feature_layers_of_preset
from ..data.arguments import SOURCE_ARGUMENTS, parse_options, split_options
from ..data.files import check_name, one_line
from ..data.loading import refuse_drawn
from ..data.options import option
from .baselines import BASELINES, OWN, parse_ablations
from .evaluator import EvaluationSettings

CALIBRATIONS = ("normal", "f1", "recall")
OPTIMISTIC = "thresholds were chosen on the judged images: figures at them are optimistic; give --calibration_source"


@dataclass
class EvaluateCommand:
    """Everything `scripts/evaluate.py` takes."""

    model: str = option(None, "CLIP or AnomalyCLIP checkpoint, folder or Hub repository; 'demo' is the embedded one.")
    revision: str | None = option(None, "Revision of the checkpoint.")
    prompts: str | None = option(None, "Folder or repository of learned prompts to put on the model.")
    preset: str | None = option(None, "Feature layers: 'released' ([24] of 24) or 'paper' ([6, 12, 18, 24]).")
    image_size: int | None = option(None, "Side of the input in pixels (518 for ViT-L/14).")
    dtype: str | None = option(None, "Of the backbone: float32, bfloat16 or float16; the checkpoint's by default.")
    sources: list[str] | None = option(None, "NAME=FOLDER of data sets or own data, a folder, or 'synthetic'.")
    source: str | None = option(None, "One source instead: a data set's name, folder, table or repository.")
    data_dir: str | None = option(None, "The unpacked archive of the data set named by source.")
    split: str = option("test", "Split that is judged.")
    class_names: list[str] | None = option(None, "Judge these classes alone.")
    source_options: str | None = option(None, "JSON with further arguments of load_anomaly_dataset, or of drawing.")
    baselines: bool = option(False, f"Also judge CLIP without learning: {', '.join(BASELINES)}.")
    ablations: list[str] | None = option(
        None, "Also judge parts: dpam=off qq kk vv, layers=6,12,18,24, layers=paper, deep_prompts=off; all if bare."
    )
    tokenizer: str | None = option(None, "Where the backbone's tokenizer lies; looked for beside it by default.")
    output_dir: str = option("outputs/evaluation", "Folder for results.json, results.md, scores, report and maps.")
    resume: bool = option(False, "Take up an interrupted run in output_dir.")
    batch_size: int = option(8, "Images per forward, in each process.")
    num_workers: int = option(0, "Processes that decode images, per evaluating process.")
    sigma: float | None = option(
        None, "Smoothing of maps in pixels at the input size; the processor's own by default."
    )
    map_size: str | None = option(None, "Judge pixels at 'original' size, or at so many pixels square.")
    exact: bool | None = option(
        None, "Judge pixels from whole maps, or (false) from counts within 1e-4; small classes exactly by default."
    )
    fpr_limit: float = option(0.3, "Highest false-positive rate of AUPRO.")
    save_maps: str | None = option(None, "Keep the maps: 'png' (16 bit) or 'npy'.")
    save_every: int = option(50, "Batches between two saves of progress.")
    num_pictures: int = option(6, "Samples, misses and false alarms of each data set in the report.")
    calibrate: str | None = option(None, "Choose thresholds first: 'normal' (from normal images), 'f1' or 'recall'.")
    calibration_source: str | None = option(None, "As one of sources; the first of them by default.")
    calibration_split: str | None = option(None, "'train' for normal, 'test' otherwise, by default.")
    false_alarm_rate: float = option(0.05, "Of new normal images, for 'normal'.")
    confidence: float = option(0.95, "That this rate is kept, for 'normal'.")
    recall: float | None = option(None, "Wanted recall in (0, 1], for 'recall'.")
    save_thresholds: str | None = option(None, "Folder of a checkpoint to write them into, or a new one for prompts.")
    cpu: bool = option(False, "Use the CPU even if there is an accelerator.")
    disable_tqdm: bool = option(False, "Show no progress bars.")
    # The columns and the rest of `data.arguments`, for all sources that are not drawn.
    source_arguments: dict[str, Any] = field(init=False, default_factory=dict)
    draw: Callable[..., Any] = field(init=False, default=refuse_drawn)  # see `load_source`

    def __post_init__(self):
        if not self.model:
            raise ValueError("model is missing; give --model")
        if not self.sources and not self.source:
            raise ValueError("sources is missing; give --sources NAME=FOLDER ..., or --source with --data_dir")
        if self.sources and self.source:
            raise ValueError(f"sources={self.sources} and source={self.source!r}; give one of the two")
        if self.calibrate is not None and self.calibrate not in CALIBRATIONS:
            raise ValueError(f"calibrate={self.calibrate!r}, expected one of {', '.join(CALIBRATIONS)}")
        if (self.calibrate == "recall") != (self.recall is not None):
            raise ValueError(f"calibrate={self.calibrate!r} with recall={self.recall}: give both or neither")
        if self.save_thresholds and not self.calibrate:
            raise ValueError("save_thresholds needs --calibrate, which chooses them")

    def settings(self) -> EvaluationSettings:
        """Those of the evaluator."""
        size: Any = int(self.map_size) if self.map_size and self.map_size.isdecimal() else self.map_size
        return EvaluationSettings(
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            sigma=self.sigma,
            map_size=size,
            exact=self.exact,
            fpr_limit=self.fpr_limit,
            save_maps=self.save_maps,
            save_every=self.save_every,
        )


def parse_command(argv: Sequence[str] | None = None) -> EvaluateCommand:
    """Read the command line."""
    from transformers import HfArgumentParser

    from ..data.arguments import add_source_arguments, source_arguments

    parser: Any = HfArgumentParser(
        EvaluateCommand, description="Judge AnomalyCLIP; with `accelerate launch` in several processes."
    )
    for action in parser._actions:
        if action.dest == "ablations":
            action.nargs = "*"
        elif action.dest == "exact":
            action.nargs, action.const = "?", True
    taken = [action.dest for action in parser._actions]  # --revision is the checkpoint's
    add_source_arguments(parser.add_argument_group("reading of the sources"), skip=taken)
    command, flags = parser.parse_args_into_dataclasses(args=list(sys.argv[1:] if argv is None else argv))
    command.source_arguments = source_arguments(flags)
    return command


def load_model(command: EvaluateCommand) -> tuple[Any, Any]:
    """Model and processor of a command."""
    model = loading.load_model(command)
    if command.prompts:
        model.load_prompts(command.prompts)
        # Prompts bring their own settings; what the user says goes before them.
        if command.image_size is not None:
            model.config.image_size = command.image_size
        if command.preset is not None:
            depth = model.config.vision_config.num_hidden_layers
            model.config.feature_layers = feature_layers_of_preset(command.preset, depth)
    return model, loading.load_processor(command, model.config.image_size)


def load_source(
    text: str,
    split: str = "test",
    data_dir: str | None = None,
    draw: Callable[..., Any] = refuse_drawn,
    **options: Any,
) -> tuple[str, Any]:
    """Load one data set of the command line.

    Args:
        text (`str`): `NAME=FOLDER` (a data set of `LAYOUTS` and its unpacked archive, or own data under a name), what
            `load_anomaly_dataset` takes, or `synthetic`.
        split, data_dir, **options: as in `load_anomaly_dataset`; for `synthetic` those of `draw`.
        draw (callable, *optional*): function `(split, **options)` that returns the data set `synthetic`; a checkout's
            scripts have one.

    Returns:
        its name and the data set.
    """
    from ..data import find_layout, load_anomaly_dataset

    if text == "synthetic":
        return text, draw(split, **options)
    name, given, folder = text.partition("=")
    if not given:
        layout = find_layout(text) if data_dir is not None else None
        named = layout.name if layout is not None else Path(os.path.abspath(text)).name
        check_name(named, f"{text!r} (write NAME=FOLDER): its name")
        return named, load_anomaly_dataset(text, data_dir=data_dir, split=split, **options)
    if not name or not folder:
        raise ValueError(f"{text!r}: expected NAME=FOLDER")
    check_name(name, f"{text!r}: the name")
    if find_layout(name) is not None:
        return name, load_anomaly_dataset(name, data_dir=folder, split=split, **options)
    return name, load_anomaly_dataset(folder, split=split, **options)


def load_sources(command: EvaluateCommand) -> dict[str, Any]:
    """All data sets of a command by name."""
    found = {}
    for text in _source_texts(command):
        split = "test" if text == "synthetic" else command.split  # drawn anew, it has no other
        name, dataset = load_source(text, split, command.data_dir, command.draw, **_source_options(command, text))
        if name in found:
            raise ValueError(f"two sources are named {name!r}: write NAME=FOLDER with different names")
        found[name] = dataset
    return found


def _source_texts(command: EvaluateCommand) -> list[str]:
    return command.sources or [str(command.source)]


def _source_options(command: EvaluateCommand, text: str) -> dict[str, Any]:
    given = parse_options(command.source_options, "source_options")
    loaded, drawn = split_options(given, "synthetic" in (*_source_texts(command), command.calibration_source))
    options = drawn if text == "synthetic" else command.source_arguments | loaded
    return options | ({"class_names": command.class_names} if command.class_names else {})


def choose_thresholds(command: EvaluateCommand, model: Any, processor: Any, judged: Mapping[str, Any]) -> dict:
    """Set the model's thresholds from the calibration data, and store them if asked to.

    Args:
        command, model, processor: what is judged.
        judged: the data sets that are; where they share images with the calibration data, `warning` says so, and
            `judged_images_of` names them.
    """
    from .thresholds import calibrate, save_thresholds

    source = command.calibration_source or _source_texts(command)[0]
    normal = command.calibrate == "normal"
    split = command.calibration_split or ("train" if normal else "test")
    options = _source_options(command, source)
    if command.calibration_source:
        options.pop("class_names", None)  # those of the judged sources
    drawn = "calibration" if source == "synthetic" else split  # never the drawings that are judged
    name, dataset = load_source(source, drawn, command.data_dir, command.draw, **options)
    wanted: dict[str, Any] = {"method": "normal" if normal else "labels"}
    if normal:
        wanted |= {"false_alarm_rate": command.false_alarm_rate, "confidence": command.confidence}
    else:
        wanted |= {"objective": command.calibrate, "recall": command.recall}
    found = calibrate(
        model,
        processor,
        dataset,
        batch_size=command.batch_size,
        num_workers=command.num_workers,
        show_progress=not command.disable_tqdm,
        **wanted,
    )
    if command.save_thresholds and _is_main_process():
        if Path(command.save_thresholds, "config.json").is_file():
            save_thresholds(command.save_thresholds, model.config.image_threshold, model.config.pixel_threshold)
        else:
            model.save_prompts(command.save_thresholds, processor=processor)
    shared = [] if source == "synthetic" else _sharing(command, source, split, dataset, judged)
    warning = {"warning": OPTIMISTIC, "judged_images_of": shared} if shared else {}
    return {"source": name, "split": split, **warning, **wanted, **found}


def _sharing(command: EvaluateCommand, source: str, split: str, dataset: Any, judged: Mapping[str, Any]) -> list[str]:
    """Names of the judged data sets that hold images of the calibration data: the same files, or source and split."""
    files = {os.path.realpath(path) for path in dataset["path"] if os.path.isfile(path)}
    return [
        name
        for text, (name, other) in zip(_source_texts(command), judged.items(), strict=True)
        if (text == source and (command.split == split or "all" in (command.split, split)))
        or any(os.path.realpath(path) in files for path in other["path"])
    ]


def run(command: EvaluateCommand) -> dict[str, Any]:
    """Do what a command says; every process gets the result."""
    from accelerate import Accelerator
    from transformers import AutoTokenizer

    from .evaluator import evaluate_sources

    accelerator = Accelerator(cpu=command.cpu)
    settings = command.settings()
    model, processor = load_model(command)
    model.to(accelerator.device)
    sources = load_sources(command)
    methods = [OWN, *(BASELINES if command.baselines else ())]
    if command.ablations is not None:
        methods += parse_ablations(command.ablations, model)
    thresholds = choose_thresholds(command, model, processor, sources) if command.calibrate else None
    result = evaluate_sources(
        model,
        processor,
        sources,
        methods=methods,
        tokenizer=AutoTokenizer.from_pretrained(command.tokenizer) if command.tokenizer else None,
        accelerator=accelerator,
        output_dir=command.output_dir,
        resume=command.resume,
        show_progress=not command.disable_tqdm,
        num_pictures=command.num_pictures,
        thresholds=thresholds,
        **vars(settings),
    )
    return result


def main(argv: Sequence[str] | None = None, draw: Callable[..., Any] = refuse_drawn) -> int:
    """Run the command; errors of settings and data, and interruptions, are one line, without a traceback.

    Args:
        argv (*optional*): the process's own by default.
        draw (callable, *optional*): as of [`load_source`].

    Returns:
        the exit status: 0 all was judged, 1 images could not be read or results not be drawn, and were left out, 2 an
        error, 130 and 143 interrupted and terminated (give --resume to go on).
    """
    options = [*(field.name for field in fields(EvaluateCommand) if field.init), *SOURCE_ARGUMENTS]
    return running.run_until_interrupted(lambda words: _evaluate(words, draw), argv, options=options)


def _evaluate(argv: Sequence[str] | None, draw: Callable[..., Any]) -> int:
    from .results import short_table

    command = parse_command(argv)
    command.draw = draw
    result = run(command)
    if _is_main_process():
        print(short_table(result))
        if warning := result.get("thresholds", {}).get("warning"):
            print(f"warning: {warning}", file=sys.stderr)
        for name, entry in result["datasets"].items():
            if at := entry.get("at_image_threshold"):
                shares = ", ".join(
                    f"{key} {100 * at[key]:.1f}%" for key in ("recall", "false_alarm_rate") if key in at
                )
                print(f"\n{name} at image_threshold {at['threshold']:.4f}: {shares}")
        for name, entry in result["datasets"].items():
            for one in entry["unreadable"]:
                print(f"skipped {name}: {one_line(one['error'])}", file=sys.stderr)
        for text in result.get("not_drawn", ()):
            print(f"not drawn: {one_line(text)}", file=sys.stderr)
        print(f"\nresults, scores and report: {command.output_dir}")
    left_out = any(entry["unreadable"] for entry in result["datasets"].values())
    return 1 if left_out or result.get("not_drawn") else 0


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
