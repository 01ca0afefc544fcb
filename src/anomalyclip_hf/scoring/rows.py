"""Rows of the one schema through the model: what is prepared of a row, and its score and map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.paint import fit_mask
from ..image_processing_anomalyclip import check_tiling, following, with_resizing
from ..options_anomalyclip import READING, RESIZING, THRESHOLDS
from ..pipeline_anomalyclip import PRE_OPTIONS, prepare_image
from ..prompts_anomalyclip import backbone_fingerprint
from .tiling import View, score_views

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor
    from ..pipeline_anomalyclip import ZeroShotAnomalyDetectionPipeline
    from ..sharing.references import References


class PreparedRow(NamedTuple):
    """One row as the model takes it.

    Args:
        view: of the image.
        label: 0 normal, 1 anomalous, None unknown.
        mask: `(h, w)` bool truth at the size that pixels are judged at, all False for a normal image; None where it is
            unknown.
        class_name: what baselines call the object.
        others: the same image as other processors prepare it, by method.
    """

    view: View
    label: int | None
    mask: np.ndarray | None
    class_name: str = "object"
    others: Mapping[str, View] = {}


def prepare_row(
    row: Mapping[str, Any],
    processor: AnomalyCLIPProcessor,
    map_size: int | str | None = None,
    others: Mapping[str, AnomalyCLIPProcessor] | None = None,
) -> PreparedRow:
    """Prepare a row of `load_anomaly_dataset`.

    Args:
        row: `image`, `mask` (None where there is none) and `label`.
        processor: of the model.
        map_size: size that pixels are judged at: None is the model's input, or the image's own where it isn't resized
            to a square; "original" the image's own, a number so many pixels square.
        others: further processors, by method.

    Raises:
        ImageReadError: the mask does not fit the image.
    """
    image, label = row["image"], row["label"] if row["label"] in (0, 1) else None
    mask = row["mask"]
    if mask is not None:
        mask = fit_mask(mask, image.size, f"of {row.get('path', 'the image')}")
    elif label == 0:
        mask = Image.new("L", image.size, 0)
    is_square = processor.resize == "square"
    inputs = processor(image, masks=[mask] if is_square else None, return_tensors="pt")
    if mask is None:
        truth = None
    elif map_size is None and is_square:
        truth = inputs["masks"][0].numpy() > 0.5
    else:
        if isinstance(map_size, int):
            mask = mask.resize((map_size, map_size), resample=Image.Resampling.BILINEAR)
        truth = np.asarray(mask) > 127.5
    views = {name: _view(image, other(image, return_tensors="pt")) for name, other in (others or {}).items()}
    return PreparedRow(_view(image, inputs), label, truth, str(row.get("class_name") or "object"), views)


def _view(image: Image.Image, inputs: Mapping[str, Any]) -> View:
    return View(inputs["pixel_values"][0], (image.height, image.width), inputs.get("tiles", [None])[0])


def resizing_of(processor: AnomalyCLIPProcessor) -> dict[str, Any]:
    """How a processor resizes images, as the options of commands name it: what thresholds hold for."""
    names = RESIZING if processor.resize == "tile" else ("resize",)
    return {name: getattr(processor, name) for name in names}


def processor_for(model: AnomalyCLIPModel, processor: AnomalyCLIPProcessor) -> AnomalyCLIPProcessor:
    """The processor, with the way of resizing and the input size of the profile set on the model, if any."""
    if model.profile is None:
        return processor
    if (own := model.__dict__.get("_own_prompts")) is not None:  # those of the profile are on the model
        processor = following(processor, own.config.image_size, model.config.image_size)
    return with_resizing(processor, model.profile.options, model.config.vision_config.patch_size)


def rule_of(model: AnomalyCLIPModel) -> str:
    """The rule of scores: of the profile set on the model, or of its configuration."""
    return getattr(model.profile, "score_rule", None) or model.config.score_rule


@torch.no_grad()
def score_rows(
    forward: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    processor: AnomalyCLIPProcessor,
    views: Sequence[View],
    rules: Sequence[str],
    sigma: float | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> list[list[tuple[float, np.ndarray]]]:
    """Score images by one or several methods.

    Args:
        forward: as of [`score_views`], for as many methods as there are `rules`.
        views: of the images, as `processor` prepared them.
        rules: of scores, one for each method (see `rule_of`).
        sigma: smoothing in pixels at the model's input size; the processor's own where None.
        sizes: (height, width) of each map; the model's input, or the image's own where it isn't resized to a square,
            where None.

    Returns:
        for each image score and map `(H, W)` float32 of each method.
    """
    finish, found = processor.post_process_anomaly_detection, []
    if processor.resize == "square":
        output = forward(torch.stack([pixel_values for pixel_values, _, _ in views]))
        sides = {"logits": 1, "anomaly_maps": 2, "reference_scores": 0}
        for number, rule in enumerate(rules):
            own = {
                key: value.reshape(len(rules), len(views), *value.shape[value.ndim - count :])[number]
                for key, count in sides.items()
                if (value := output.get(key)) is not None
            }
            found.append(finish(own, sizes, sigma, score_rule=rule))
        found = [*zip(*found, strict=True)]
    else:
        for place, output in enumerate(score_views(forward, processor, views, sigma)):
            size = None if sizes is None else [sizes[place]]
            rows = ({key: value[[number]] for key, value in output.items()} for number in range(len(rules)))
            found.append([finish(row, size, 0, score_rule=rule)[0] for row, rule in zip(rows, rules, strict=True)])
    return [[(one["score"], one["anomaly_map"].float().cpu().numpy()) for one in results] for results in found]


class PipelinePreparer:
    """The first step of a pipeline without its model, for worker processes.

    Args:
        detector: the pipeline; options of its model's profile are used.
        options: of the step, which go before those.
    """

    def __init__(self, detector: ZeroShotAnomalyDetectionPipeline, options: Mapping[str, Any]):
        given = {**detector.settings_of_profile(PRE_OPTIONS), **detector._preprocess_params, **options}
        patch_size = detector.model.config.vision_config.patch_size
        self.processor, self.dtype = with_resizing(detector.image_processor, given, patch_size), detector.dtype
        self.reading = {name: given[name] for name in READING if name in given}
        # Here, or else each image would be skipped for it.
        check_tiling({name: given[name] for name in RESIZING if name in given}, self.processor.resize)

    @property
    def keeps_size(self) -> bool:
        """Whether maps have their image's size, whatever is asked for."""
        return self.processor.resize != "square"

    def __call__(self, image: Image.Image) -> dict[str, Any]:
        return prepare_image(image, self.processor, self.dtype)


class PipelineScorer:
    """A call of a pipeline in two steps, its options parsed once: `prepare`, in worker processes, and the rest here.

    Args:
        detector: the pipeline.
        **options: of a call; an unknown one, or one out of its range, is refused as there.
    """

    def __init__(self, detector: ZeroShotAnomalyDetectionPipeline, **options: Any):
        before, during, after = detector._sanitize_parameters(**options)
        self.detector, self.prepare = detector, PipelinePreparer(detector, before)
        self.during = {**detector._forward_params, **during}
        self.after = {**detector._postprocess_params, **after}
        if (outputs := self.during.get("outputs", "all")) != "all":
            raise ValueError(
                f"outputs={outputs!r} is for calls of the pipeline; records need score and map: leave it out"
            )

    def __call__(
        self, prepared: Sequence[Mapping[str, Any]], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        """Results of one batch of images, as a call of the pipeline gives them.

        Args:
            prepared: what `prepare` returned for each; `target_size` `(1, 2)`, (height, width) in pixels, is the size
                of the image's map and may be another than its own.
            image_sizes: (height, width) of each image in pixels, which regions are measured in.
        """
        if "view" in prepared[0]:
            batch: dict[str, Any] = {"view": [one["view"] for one in prepared]}
        else:  # moved one by one: what is pinned need not be waited for
            device = self.detector.device
            batch = {
                key: torch.cat([one[key].to(device, non_blocking=True) for one in prepared]) for key in prepared[0]
            }
        outputs = self.detector.forward(batch, **self.during)
        rows = ({key: value[i][None] for key, value in outputs.items()} for i in range(len(prepared)))
        return [
            self.detector.postprocess(row, image_sizes=[size], **self.after)
            for row, size in zip(rows, image_sizes, strict=True)
        ]


def compares(detector: Any, options: Mapping[str, Any]) -> bool:
    """Whether images are compared with references, by a call of a pipeline with these options."""
    given = options.get("references", getattr(detector, "_forward_params", {}).get("references"))
    return given is not None or getattr(getattr(detector, "model", None), "references", None) is not None


def digest_model(
    model: AnomalyCLIPModel, processor: AnomalyCLIPProcessor, references: References | None = None
) -> str:
    """Hexadecimal digest of all that decides scores and maps, unlike thresholds; of the model's own references if
    none are given."""
    ignored = ("_name_or_path", "transformers_version", *THRESHOLDS, "thresholds_for")
    config = {key: value for key, value in model.config.to_dict().items() if key not in ignored}
    facts: list[Any] = [config | {"score_rule": rule_of(model)}, processor.to_dict(), str(model.dtype)]
    learned = [] if model.config.vision_only else [p.detach() for p in model.prompt_learner.parameters()]
    if (references := references or model.references) is not None:
        facts.append([references.weight, references.layers])
        learned.append(references.features)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    fingerprint = backbone_fingerprint(model)
    for tensor in [*learned, *([] if fingerprint is None else [fingerprint])]:
        digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
