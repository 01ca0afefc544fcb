"""Exporting a model: its graph, what is said of it, and a certificate of what that changed."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ..data.addresses import read_image
from ..data.files import write_json
from ..evaluation.results import versions
from ..inputs_anomalyclip import smoothing_matrix
from ..modeling_anomalyclip import AnomalyCLIPModel, AnomalyCLIPOutput
from .certificate import (
    EXACT,
    compare,
    describe_machine,
    draw_images,
    judge_both,
    refuse_loss,
)
from .engines import FACTS, INPUT, OUTPUTS, PACKAGES, PRECISIONS, PROGRAMS, is_exported
from .model import TEXT_EMBEDS, ExportedModel

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPProcessor

CERTIFICATE = "certificate.json"
MAX_BATCH = 4096
MAX_SIDE = 8192
# format -> module and names of the exporter of transformers and its configuration; packages beside torch
_EXPORTERS = {
    "onnx": ("exporter_onnx", "OnnxExporter", "OnnxConfig", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": ("exporter_openvino", "OpenVINOExporter", "OpenVINOConfig", ("openvino",)),
    "pt2": ("exporter_dynamo", "DynamoExporter", "DynamoConfig", ()),
}
STEPS = [
    "1. Read the image, upright as its EXIF orientation says, as RGB of 8 bits.",
    "2. Resize it to size of preprocessor_config.json with the filter resample (3: bicubic, as PIL does it: with "
    "antialiasing, rounded to 8 bits).",
    "3. x = (value * rescale_factor - image_mean) / image_std of each channel; channels first, float32.",
    "4. Run the graph on a batch of these.",
    "5. score = 1 / (1 + exp(logits[0] - logits[1])); anomalous from image_threshold of config.json on.",
    "6. Smooth the map by a Gaussian of sigma pixels (of preprocessor_config.json; 0: none), cut at 4 sigma, edges "
    "mirrored (d c b a | a b c d | d c b a).",
    "7. Resize it bilinearly to the image's size, between the centers of pixels, without antialiasing; anomalous from "
    "pixel_threshold of config.json on.",
]


def export_model(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    output_dir: str | os.PathLike,
    format: str = "onnx",
    precision: str = "float32",
    *,
    images: Sequence[Any] | None = None,
    calibration_images: Sequence[Any] | None = None,
    dataset: datasets.Dataset | None = None,
    tolerance: float | None = None,
    smooth: bool = False,
    map_size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    batch_size: int = 4,
) -> dict[str, Any]:
    """Write a model for another engine, with its prompts folded in, and a certificate of what that changed.

    The folder holds the graph (`pixel_values` `(B, 3, S, S)` to `logits` `(B, 2)` and `anomaly_maps` `(B, S, S)`,
    float32, B free), config.json, preprocessor_config.json, profiles without prompts of their own, `FACTS` (names,
    steps to be taken around the graph, versions, checksums) and certificate.json. It is written whole or not at all.

    Args:
        model ([`AnomalyCLIPModel`]), processor ([`AnomalyCLIPProcessor`]).
        output_dir: made, or replaced where it holds an export.
        format: "onnx", "openvino" or "pt2" (`torch.export`).
        precision: "float32", "bfloat16" or "int8", see `PRECISIONS`.
        images (*optional*): to compare by, of any kind that the pipeline takes; drawn ones if absent.
        calibration_images (*optional*): like those to come, for "int8" of "openvino"; about 100.
        dataset (*optional*): labelled images, from `load_anomaly_dataset`: metrics are compared too.
        tolerance (*optional*): largest difference of a score or map; 1e-4 for float32, otherwise none if absent.
        smooth: put the smoothing into the graph; the processor beside it then has `sigma=0`.
        map_size (*optional*): height and width in pixels of the map that the graph gives, such as those of a camera's
            images: resized in the graph, bilinearly; with `smooth=True`. The input's own if absent.
        dynamic_size: leave height and width of the graph's input open, for `resize="fit"`: multiples of the patch
            size, twice that or more.
        batch_size: images per forward when comparing.

    Returns:
        the certificate.

    Raises:
        ImportError: a package that the format needs isn't installed.
        ValueError: an argument out of range, a difference beyond the tolerance, or a metric that falls by more than
            half a point.
        OSError: the folder is none of ours, or can't be written.
    """
    _check(model, processor, format, precision, calibration_images, dataset, tolerance)
    _check_size(model, processor, smooth, map_size, dynamic_size)
    target = Path(output_dir)
    if target.exists() and not (target.is_dir() and (is_exported(target) or not any(target.iterdir()))):
        raise FileExistsError(
            f"output_dir={os.fspath(output_dir)!r} is there and holds no export: name another folder"
        )
    vision = (model if model.config.vision_only else model.to_vision_only()).cpu().float().eval()
    stored = copy.deepcopy(processor)
    if smooth:
        stored.sigma = 0.0
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as folder:
        stage = Path(folder, target.name or "export")
        stage.mkdir()
        sigma = processor.sigma if smooth else 0.0
        scorer = _scorer(vision, sigma, map_size)
        with _quiet():
            half = precision == "bfloat16"
            program = _trace(
                _scorer(copy.deepcopy(vision).bfloat16(), sigma, map_size) if half else scorer, format, dynamic_size
            )
            if precision == "int8" and format == "openvino":
                program = _quantize(program, processor, calibration_images or [])
            path = Path(folder if precision == "int8" and format == "onnx" else stage, PROGRAMS[format])
            _save(program, format, path)
            if path.parent != stage:
                _quantize_weights(path, stage / path.name)
        digests = {path.name: _sha256(path) for path in sorted(stage.iterdir())}
        np.save(stage / TEXT_EMBEDS, vision.get_prompt_embeds().numpy(), allow_pickle=False)
        vision.config.save_pretrained(stage)
        stored.save_pretrained(stage)
        _save_profiles(vision, stage)
        made_with = versions() | {package: version(package) for package in _packages(format, precision)}
        multiple = vision.config.vision_config.patch_size if dynamic_size else None
        facts = _describe(stored, format, precision, digests, made_with, map_size, multiple)
        write_json(stage / FACTS, facts)
        exported = ExportedModel(stage)
        certificate: dict[str, Any] = {"format": format, "precision": precision, "model": model.name_or_path}
        certificate["images"] = "drawn" if images is None else "given"
        shown = draw_images(max(vision.config.image_size, 64)) if images is None else images
        certificate |= compare(scorer, exported, processor, shown, batch_size)
        certificate["tolerance"] = EXACT if tolerance is None and precision == "float32" else tolerance
        if dataset is not None:
            certificate["metrics"] = judge_both((vision, processor), (exported, stored), dataset, batch_size)
        refuse_loss(certificate, certificate["tolerance"])
        certificate |= {**describe_machine(), "versions": made_with, "files": digests}
        write_json(stage / CERTIFICATE, certificate)
        del exported
        if target.exists():
            os.replace(target, Path(folder, "former"))
        os.replace(stage, target)
    return certificate


def _check(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    format: str,
    precision: str,
    calibration_images: Sequence[Any] | None,
    dataset: datasets.Dataset | None,
    tolerance: float | None,
) -> None:
    if format not in PROGRAMS:
        raise ValueError(f"format={format!r}, expected one of {', '.join(PROGRAMS)}")
    if precision not in PRECISIONS[format]:
        offered = ", ".join(PRECISIONS[format])
        raise ValueError(f"precision={precision!r} with format={format!r}, expected one of {offered}")
    if ((format, precision) == ("openvino", "int8")) != (calibration_images is not None):
        raise ValueError(
            f"format={format!r}, precision={precision!r} with{'' if calibration_images is not None else 'out'} "
            "calibration_images: int8 of openvino needs images like those to come, and nothing else does"
        )
    if precision == "int8" and dataset is None and tolerance is None:
        raise ValueError(
            "int8 is written only where its cost is known: give dataset=..., labelled images on which half a point "
            "may be lost, or tolerance=..., the largest difference that you accept"
        )
    if calibration_images is not None and not len(calibration_images):
        raise ValueError("calibration_images is empty, expected about 100 images like those to come")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance={tolerance!r}, expected a difference above 0")
    for package in _packages(format, precision):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"format={format!r} needs {package}: pip install 'anomalyclip_hf[export]'") from error


def _check_size(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    smooth: bool,
    map_size: tuple[int, int] | None,
    dynamic_size: bool,
) -> None:
    side, size = model.config.image_size, dict(processor.size)
    resizes = ("square", "fit") if dynamic_size else ("square",)
    if processor.resize not in resizes or (size.get("height"), size.get("width")) != (side, side):
        raise ValueError(
            f"resize={processor.resize!r}, size={size}: a graph takes squares of the model's image_size={side}, and "
            f"with dynamic_size=True what resize='fit' gives; give a processor with resize={' or '.join(resizes)} and "
            "that size"
        )
    if map_size is not None:
        if len(map_size) != 2 or not all(type(one) is int and 0 < one <= MAX_SIDE for one in map_size):
            raise ValueError(f"map_size={map_size!r}, expected height and width in pixels, 1 to {MAX_SIDE}")
        if not smooth:
            raise ValueError(f"map_size={map_size!r} with smooth=False: maps are smoothed before they are resized")
    if smooth and dynamic_size:
        raise ValueError("smooth=True with dynamic_size=True: smoothing in the graph is of one size; leave one out")


def _packages(format: str, precision: str) -> tuple[str, ...]:
    """What an export needs beside torch and transformers."""
    return (*_EXPORTERS[format][3], *(("nncf",) if (format, precision) == ("openvino", "int8") else ()))


def _scorer(vision: AnomalyCLIPModel, sigma: float, map_size: tuple[int, int] | None = None) -> AnomalyCLIPModel:
    """The model with an output that has logits and maps alone, so that what nobody reads stays out of the graph."""
    side = vision.config.image_size
    smoothing = torch.from_numpy(smoothing_matrix(side, float(sigma))) if sigma else None

    def forward(pixel_values: Tensor, return_dict: bool | None = None) -> AnomalyCLIPOutput:
        output: Any = AnomalyCLIPModel.forward(scorer, pixel_values, return_dict=True)
        maps = output[OUTPUTS[1]]
        maps = maps if smoothing is None else smoothing @ maps @ smoothing.T
        if map_size is not None:
            maps = torch.nn.functional.interpolate(maps[:, None], size=map_size, mode="bilinear")[:, 0]
        return AnomalyCLIPOutput(logits=output[OUTPUTS[0]], anomaly_maps=maps)

    scorer = copy.copy(vision)
    scorer.__dict__["forward"] = forward
    return scorer


def _trace(scorer: AnomalyCLIPModel, format: str, dynamic_size: bool = False) -> Any:
    """The program of a format, for batches of any number and squares or, if asked for, any multiples of patches."""
    module, exporter, config, _ = _EXPORTERS[format]
    library = importlib.import_module(f"transformers.exporters.{module}")
    height = width = side = scorer.config.image_size
    dimensions: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    if dynamic_size:
        patch = scorer.config.vision_config.patch_size
        # Traced where no two sides are equal, so that none is taken for another.
        height, width = 2 * patch, 3 * patch
        for axis, name in ((2, "rows"), (3, "columns")):
            dimensions[axis] = patch * torch.export.Dim(name, min=2, max=MAX_SIDE // patch)
    settings = getattr(library, config)(dynamic_shapes={INPUT: dimensions})
    pixel_values = torch.linspace(-2, 2, 2 * 3 * height * width).sin().view(2, 3, height, width)
    program = getattr(library, exporter)().export(scorer, {INPUT: pixel_values}, settings).program
    if format == "openvino" and not dynamic_size:  # it would leave the sides open, though the graph is of these
        program.reshape({INPUT: [-1, 3, side, side]})
    return program


def _quantize(program: Any, processor: AnomalyCLIPProcessor, images: Sequence[Any]) -> Any:
    """The program with weights and activations of 8 bits, where calibration images show their ranges."""
    import nncf

    def prepare(image: Any) -> dict[str, np.ndarray]:
        return {INPUT: processor([read_image(image)], return_tensors="np")[INPUT]}

    return nncf.quantize(
        program,
        nncf.Dataset(images, prepare),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        # Patches' embedding takes 1 % of the time, and in 8 bits made most of the difference in maps.
        ignored_scope=nncf.IgnoredScope(types=["Convolution"]),
        subset_size=len(images),
    )


def _quantize_weights(source: Path, target: Path) -> None:
    """Write an ONNX graph with weights of 8 bits a channel; activations get theirs by what each image shows."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target, ["MatMul"], per_channel=True, extra_options={"MatMulConstBOnly": True})


def _save(program: Any, format: str, path: Path) -> None:
    module, exporter, *_ = _EXPORTERS[format]
    getattr(importlib.import_module(f"transformers.exporters.{module}"), exporter).save_program(program, path)


def _describe(
    processor: AnomalyCLIPProcessor,
    format: str,
    precision: str,
    digests: dict[str, str],
    made_with: dict[str, str],
    map_size: tuple[int, int] | None,
    multiple: int | None,
) -> dict[str, Any]:
    """What a program needs to know that runs the graph without this package."""
    height, width = ("height", "width") if multiple else (dict(processor.size)[side] for side in ("height", "width"))
    sides = {"sides_are_multiples_of": multiple} if multiple else {}
    return {
        "format": format,
        "precision": precision,
        "input": {"name": INPUT, "shape": ["batch", 3, height, width], "dtype": "float32", **sides},
        "outputs": {
            OUTPUTS[0]: {"shape": ["batch", 2], "dtype": "float32", "is": "normal, anomalous; before the softmax"},
            OUTPUTS[1]: {
                "shape": ["batch", *(map_size or (height, width))],
                "dtype": "float32",
                "is": "P(anomalous) of each pixel",
            },
        },
        "steps": STEPS,
        "engine": PACKAGES[format],
        "files": digests,
        "versions": made_with,
    }


def _save_profiles(vision: AnomalyCLIPModel, stage: Path) -> None:
    """Write the profiles beside the model but those with prompts of their own, which the graph hasn't."""
    for name in vision.profile_names:
        try:
            profile = vision.get_profile(name)
            if profile.prompts is not None or profile.references is not None:
                raise ValueError("it has prompts or references of its own")
            profile.save(stage)
        except (OSError, ValueError) as error:
            warnings.warn(f"profile {name} is left out of the export: {error}", stacklevel=3)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from telling what they are made of, and what other models would need."""
    names = ("root", "torch.onnx", "torch.export", "nncf", "transformers.exporters")
    former = {name: logging.getLogger(name).level for name in names}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for name, level in former.items():
            logging.getLogger(name).setLevel(level)


__all__ = ["export_model"]
