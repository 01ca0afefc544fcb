"""Pipeline: one call from an image to a score and a heat map."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers.image_utils import load_image as load_from_address
from transformers.pipelines import Pipeline
from transformers.utils import logging

from .image_processing_anomalyclip import AnomalyCLIPImageProcessor, following, upright_image
from .options_anomalyclip import (
    ADDRESSES,
    DOWNLOAD_BYTES,
    DOWNLOAD_TIMEOUT,
    OPTION_RULES,
    READING,
    RESIZING,
    THRESHOLDS,
    check_options,
    if_installed,
    installed,
)

logger = logging.get_logger(__name__)
PRE_OPTIONS = ("timeout", "max_bytes", *READING, *RESIZING)
COMPARING = ("references", "reference_weight")
POST_OPTIONS = ("sigma", *THRESHOLDS, "min_area", "roi", "score_rule")
# Kind of outputs -> options that it has no use for.
UNUSED = {"score": ("sigma", "pixel_threshold", "min_area", "roi"), "maps": ("image_threshold", "score_rule")}


class ZeroShotAnomalyDetectionPipeline(Pipeline):
    r"""Finds anomalies in images of objects it never saw.

    ```python
    >>> import anomalyclip_hf
    >>> from transformers import pipeline

    >>> detector = pipeline("zero-shot-anomaly-detection", model=anomalyclip_hf.demo_checkpoint())
    >>> result = detector("photo.jpg")
    >>> result["score"], result["anomaly_map"].shape
    ```

    Args of a call:
        inputs: a path, URL, open binary file, the bytes of a file, PIL image or array, or a list, iterator, torch
            dataset, `datasets` column or pandas series of them, an array of paths, or an array or tensor of several,
            `(B, H, W, C)` or `(B, C, H, W)`.
        batch_size (`int`, defaults to 1).
        sigma (`float`, pixels at the model's input size, *optional*): smoothing; the processor's own if absent.
        image_threshold, pixel_threshold (`float` in [0, 1], *optional*): those of the model's config if absent.
        resize (`str`, *optional*): `"square"`, `"fit"` (keeps the ratio of the sides) or `"tile"` (for small defects
            in large images); the processor's own if absent. A tiled image's score is the highest of the whole view's
            and the tiles', so that thresholds hold for the `resize` that they were chosen with.
        tile_size (`int`, pixels of the image, *optional*), overlap (`float` in [0, 0.9], *optional*): of tiles.
        min_area (`int`, pixels of the image, defaults to 1): smaller regions are left out of mask and regions.
        roi (*optional*): region of interest, outside which there is neither mask nor region: a mask image (path, PIL
            image or array; not black is inside) or a polygon [[x, y], ...] in pixels of the image.
        window (`"percentile"` or `(low, high)`, *optional*): the 1st and 99th percentile of each image, which makes
            scores less comparable, or the stored values that become black and white; by bit depth if absent.
        channels (three `int` from 0, *optional*): those to take of images that have neither 1, 3 nor 4 channels.
        score_rule (`str`, *optional*): `"global"`, `"max"` or `"mean"`; that of the model's config if absent.
        references (*optional*): good images to compare with, in place of the model's own; of any
            kind that [`~AnomalyCLIPModel.make_references`] takes. Given to `pipeline(...)`, for all calls.
        reference_weight (`float`, 0 or more, *optional*): of the model's own map and score beside references; 0.1.
        outputs (`str`, defaults to `"all"`): `"score"` = score and label alone, without the refined path and maps;
            `"maps"` = map, mask and regions alone. For `resize="square"` without references.
        timeout (`float`, seconds, defaults to 30): for a URL, from the request to the last byte.
        max_bytes (`int`, defaults to 100 million): largest file that a URL may lead to.

    Options that a call leaves out are those of the profile that is set on the model (`model.set_profile`), if any.

    Returns:
        for each image a `dict`: `score` (float, P(anomalous)), `anomaly_map` (float32 array (h, w) in [0, 1], at the
        image's own size), and, where thresholds are set, `label` ("normal" or "anomalous"), `mask` (bool array) and
        `regions` (a list of dicts, see [`find_regions`]).
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False
    _given: tuple[int, Any]  # input size of the model -> processor: as given, and as used now
    _followed: tuple[int, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("feature_extractor", "tokenizer", "video_processor"):
            if kwargs.get(name) is not None:
                raise ValueError(f"this pipeline uses no {name}; give an AnomalyCLIPImageProcessor as image_processor")
        given = [kwargs[name] for name in ("image_processor", "processor") if kwargs.get(name) is not None]
        for one in given:
            # Not by its class, of which code that travels with a checkpoint has its own.
            if not isinstance(one, str | os.PathLike) and not hasattr(one, "post_process_anomaly_detection"):
                raise ValueError(
                    f"the processor given is a {type(one).__name__}, which neither resizes nor scores as this model "
                    "needs it; give an AnomalyCLIPImageProcessor, or the name of its folder or repository"
                )
        if len(given) == 2 and given[0] is not given[1]:
            raise ValueError("image_processor and processor are both given and differ; give one")
        compared = {name: kwargs.pop(name) for name in COMPARING if name in kwargs}
        super().__init__(*args, **kwargs)
        # Found here and not by the base class, which would take CLIP's own processor for a plain CLIP checkpoint.
        processor: Any = given[0] if given else self.model.default_processor()
        if isinstance(processor, str | os.PathLike):
            processor = AnomalyCLIPImageProcessor.from_pretrained(processor)
        self.image_processor = processor
        self._forward_params |= self._sanitize_parameters(**compared)[1]
        if notice := getattr(self.model.config, "notice", None):
            logger.warning(notice)

    @property
    def image_processor(self) -> Any:
        """Prepares images; one of the model's input size follows where other prompts bring another."""
        if (size := self.model.config.image_size) != self._followed[0]:
            before, given = self._given
            self._followed = (size, following(given, before, size))
        return self._followed[1]

    @image_processor.setter
    def image_processor(self, processor: Any) -> None:
        self._given = self._followed = (self.model.config.image_size, processor)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        if inputs is None:
            raise ValueError("inputs is None, expected a path, URL, PIL image or array, or a list of them")
        reader = if_installed("data.reader")
        if isinstance(inputs, torch.utils.data.Dataset):
            images = None
        elif reader is not None:
            images = reader.images_of(inputs)
        else:
            images = inputs if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes) else None
        if images is None or isinstance(images, list):
            return super().__call__(inputs if images is None else images, **kwargs) if images != [] else []
        found = super().__call__((image for image in images), **kwargs)  # the base class knows generators alone
        return found if isinstance(inputs, Iterator) else list(found)

    def _sanitize_parameters(self, **options) -> tuple[dict, dict, dict]:
        known = (*POST_OPTIONS, *PRE_OPTIONS, *COMPARING, "outputs")
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"unknown arguments {unknown}; known are {', '.join(known)}")
        options = {key: value for key, value in options.items() if value is not None}
        outputs = options.get("outputs", getattr(self, "_forward_params", {}).get("outputs", "all"))
        if unused := [name for name in options if name in UNUSED.get(outputs, ())]:
            raise ValueError(f"outputs={outputs!r} has no use for {', '.join(unused)}: give outputs='all'")
        if "roi" in options:
            options["roi"] = installed("scoring.regions").read_roi(options["roi"])
        for name in READING:
            if name in options:
                options[name] = getattr(installed("data.pixels"), f"check_{name}")(options[name])
        check_options({key: value for key, value in options.items() if key in OPTION_RULES})
        resizing = {key: options[key] for key in RESIZING if key in options}
        if resizing.get("resize", "tile") != "tile":  # those of a profile or of `pipeline(...)` are over
            resizing = {"tile_size": None, "overlap": None, **resizing}
        pre = resizing | {key: value for key, value in options.items() if key in PRE_OPTIONS}
        post = {key: value for key, value in options.items() if key in POST_OPTIONS}
        during: dict[str, Any] = {key: options[key] for key in ("sigma", "outputs") if key in options}
        if compared := {key: options[key] for key in COMPARING if key in options}:
            during["references"] = installed("sharing.references").references_of_call(self, pre, **compared)
        return pre, during, post | ({"resizing": resizing} if resizing else {})

    def preprocess(
        self, image: Any, timeout: float = DOWNLOAD_TIMEOUT, max_bytes: int = DOWNLOAD_BYTES, **options: Any
    ) -> dict[str, Any]:
        options = {**self.settings_of_profile(PRE_OPTIONS), **options}
        reading = {name: options.pop(name) for name in READING if name in options}
        patch_size = self.model.config.vision_config.patch_size
        image = _read_image(image, timeout, max_bytes, **reading)
        return prepare_image(image, self.image_processor, self.dtype, patch_size=patch_size, **options)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        sigma: float | None = None,
        references: Any = None,
        outputs: str = "all",
    ) -> dict[str, Any]:
        forward = partial(self.model, return_dict=True, references=references)
        if "view" in model_inputs:
            if outputs != "all":
                raise ValueError(
                    f"outputs={outputs!r} with resize='fit' or 'tile', expected 'all': give resize='square'"
                )
            views = model_inputs["view"]
            is_batch = isinstance(views, list)
            sigma = self.settings_of_profile(["sigma"]).get("sigma") if sigma is None else sigma
            score_views = installed("scoring.tiling").score_views
            scored = score_views(forward, self.image_processor, views if is_batch else [views], sigma)
            return {name: [one[name][0] for one in scored] if is_batch else scored[0][name] for name in scored[0]}
        target_size = model_inputs.pop("target_size")
        found = forward(**model_inputs, outputs=outputs)
        # Only what has one row per image: the base class takes batches apart row by row.
        kept = ("logits", "anomaly_maps", "reference_scores")
        return {"target_size": target_size, **{name: found[name] for name in kept if name in found}}

    def postprocess(
        self, outputs: dict[str, Any], resizing: Mapping[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        given = [name for name in THRESHOLDS if name in options]
        own = [name for name in POST_OPTIONS if name not in THRESHOLDS]
        options = {"score_rule": self.model.config.score_rule, **self.settings_of_profile(own), **options}
        if len(given) < len(THRESHOLDS):
            fitting = self.model.fitting_thresholds(options["score_rule"], "reference_scores" in outputs)
            options = {**fitting, **options}
        self._check_resizing(
            [name for name in THRESHOLDS if name not in given and options[name] is not None], resizing
        )
        is_finished = "target_size" not in outputs  # by score_views
        if is_finished:
            options["sigma"] = 0
        result = self.image_processor.post_process_anomaly_detection(
            outputs, target_sizes=None if is_finished else outputs["target_size"], **options
        )[0]
        return {key: value.cpu().numpy() if torch.is_tensor(value) else value for key, value in result.items()}

    def _check_resizing(self, thresholds: Sequence[str], resizing: Mapping[str, Any] | None) -> None:
        """Warn where stored thresholds are used with another `resize` than the one that they were chosen with."""
        stored = {name: getattr(self.image_processor, name) for name in RESIZING}
        of_profile = self.settings_of_profile((*THRESHOLDS, *RESIZING))
        used = {name: of_profile.get(name) for name in RESIZING} | dict(resizing or {})
        used = {name: value for name, value in used.items() if value is not None}
        for name in thresholds:
            chosen_with = {**stored, **of_profile} if name in of_profile else stored
            if any(chosen_with[key] != value for key, value in used.items()):
                logger.warning_once(
                    f"{name} was chosen with resize={chosen_with['resize']!r} and holds for that, not for {used}; "
                    f"calibrate with these, or give {name}"
                )

    def settings_of_profile(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of the options named that the model's profile sets; what a call gives goes before them."""
        profile = getattr(self.model, "profile", None)
        options = {} if profile is None else profile.options
        return {name: options[name] for name in names if name in options}


def _read_image(image: Any, timeout: float, max_bytes: int, **reading: Any) -> Image.Image:
    """An upright 8-bit image of any kind; without the package, transformers fetches what lies at an address."""
    if (reader := if_installed("data.addresses")) is not None:
        return reader.read_image(image, timeout, max_bytes, **reading)
    is_address = isinstance(image, str) and image[:8].lower().startswith(ADDRESSES)
    return load_from_address(image, timeout) if is_address else upright_image(image)


def prepare_image(
    image: Image.Image, processor: AnomalyCLIPImageProcessor, dtype: torch.dtype, **resizing: Any
) -> dict[str, Any]:
    """What the pipeline's model gets of an image: the same in the pipeline and in worker processes without a model.

    Args:
        image, processor: an image as read, and what prepares it.
        dtype: of `pixel_values`.
        **resizing: `resize`, `tile_size`, `overlap` and `patch_size`, as the processor takes them.
    """
    if resizing.get("resize", processor.resize) == "square":
        pixel_values = processor(image, return_tensors="pt", **resizing)["pixel_values"]
        return {"pixel_values": pixel_values.to(dtype), "target_size": torch.tensor([image.size[::-1]])}
    inputs = processor(image, return_tensors="pt", **resizing)
    # As one object: a batch then is a list of them, which need not have one size.
    return {"view": (inputs["pixel_values"][0].to(dtype), image.size[::-1], inputs.get("tiles", [None])[0])}
