"""`anomalyclip export`: a model for engines that need no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..data.options import SourceOptions, option
from ..export.engines import PRECISIONS, is_exported
from ..options_anomalyclip import SIZE
from .loading import ModelOptions, load_model, load_processor, load_source, options_of_source
from .running import naming


@dataclass
class Settings(ModelOptions, SourceOptions):
    """Write a model for another engine, and a certificate of what that changed.

    anomalyclip export --model MODEL --output-dir exported --format openvino --precision bfloat16

    The folder is used in place of a model: anomalyclip predict --model exported, and, without torch, by
    AnomalyCLIPExported.from_pretrained("exported"). Prompts are folded in. What changed is measured on --images, or on
    drawn ones, and written to certificate.json; beyond the tolerance nothing is written. Needs
    pip install '.[export]' in a checkout. Exit status: 0 done, 2 nothing was written.
    """

    output_dir: str = option("exported", "Folder for the graph and what belongs to it.", short="o", rule="folder")
    format: str = option("onnx", f"One of {', '.join(PRECISIONS)} (torch.export).")
    precision: str = option(
        "float32", f"{'; '.join(f'{name}: {chr(44).join(kinds)}' for name, kinds in PRECISIONS.items())}."
    )
    images: str | None = option(
        None, "Folder of images to compare by; drawn ones if absent.", group="Certificate", rule="path"
    )
    tolerance: float | None = option(
        None, "Largest difference of a score or map; 1e-4 for float32, else none if absent.", group="Certificate"
    )
    source: str | None = option(
        None,
        "Labelled data: AUROC and AUPRO before and after; more than half a point lost is refused.",
        group="Certificate",
        rule="source",
    )
    split: str = option("test", "Split of the labelled data.", group="Data set")
    calibration_images: str | None = option(
        None,
        "Folder of images like those to come, for int8 of openvino; about 100.",
        group="Certificate",
        rule="path",
    )
    smooth: bool = option(False, "Put the smoothing of the map into the graph.")
    map_size: list[int] | None = option(
        None, "Height and width in pixels of the graph's map, as of a camera's images; with --smooth."
    )
    dynamic_size: bool = option(False, "Leave the sides of the graph's input open, for images resized to fit.")
    batch_size: int = option(4, "Images per forward when comparing.", rule=SIZE)


def run(settings: Settings, draw: Callable | None = None) -> int:
    """Export a model; see [`Settings`] for the exit status.

    Args:
        settings ([`Settings`]).
        draw (callable, *optional*): as of [`load_source`].
    """
    from ..export import export_model

    if is_exported(settings.model):
        raise ValueError(f"model={settings.model!r} is exported already; give the model that it was made of")
    model = load_model(settings)
    processor = load_processor(settings, model.config)
    given: dict[str, Any] = {name: _images(getattr(settings, name)) for name in ("images", "calibration_images")}
    if settings.source:
        _, given["dataset"] = load_source(
            settings.source, settings.split, draw, **options_of_source(settings, settings.source)
        )
    shared = ("format", "precision", "tolerance", "smooth", "dynamic_size", "batch_size")
    given |= {name: getattr(settings, name) for name in shared}
    given["map_size"] = settings.map_size and tuple(settings.map_size)
    with naming(dataset="source"):
        certificate = export_model(model, processor, settings.output_dir, **given)
    print(
        f"{settings.format} in {settings.precision} written to {settings.output_dir}; largest difference on "
        f"{certificate['num_images']} {certificate['images']} images: score "
        f"{certificate['max_score_difference']:.3g}, map {certificate['max_map_difference']:.3g}"
    )
    for name, loss in certificate.get("metrics", {}).get("loss", {}).items():
        if loss is not None:
            before, after = (certificate["metrics"][when][name] for when in ("before", "after"))
            print(f"{name}: {100 * before:.2f} before, {100 * after:.2f} after")
    return 0


def _images(folder: str | None) -> list[str] | None:
    """Paths of the images of a folder; None without a folder."""
    from ..scoring.inputs import find_images

    if folder is None:
        return None
    found = find_images([folder])
    if not found.files:
        raise ValueError(f"{folder!r} holds no images")
    return [str(path) for path, _ in found.files]
