"""An exported model that is called like the pipeline, with numpy, PIL and its engine alone.

Importing this imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from ..data.addresses import read_image
from ..data.pixels import check_channels, check_window
from ..data.reader import fit_size, images_of
from ..inputs_anomalyclip import normalized_pixels, smoothing_matrix
from ..options_anomalyclip import READING, THRESHOLDS, WITH_REFERENCES, check_options
from ..scoring.regions import fit_roi, mark_regions, read_roi
from .engines import Engine, load_engine, multiple_of_sides, read_facts, read_json

CALLING = ("timeout", "max_bytes", *READING)
JUDGING = ("sigma", *THRESHOLDS, "min_area", "roi", "score_rule")


class AnomalyCLIPExported:
    r"""Finds anomalies as [`ZeroShotAnomalyDetectionPipeline`] does, with what `anomalyclip export` wrote.

    ```python
    >>> from anomalyclip_hf import AnomalyCLIPExported

    >>> detector = AnomalyCLIPExported.from_pretrained("exported")
    >>> result = detector("photo.jpg", pixel_threshold=0.5)
    >>> result["score"], result["anomaly_map"].shape
    ```

    Args:
        engine: of [`load_engine`].
        config (`dict`): contents of config.json; its thresholds are used where a call gives none.
        processor (`dict`): contents of preprocessor_config.json.
        multiple (`int`, *optional*): what height and width of the graph's input are multiples of, where they are open.

    Raises:
        ValueError: a setting out of its range, or a way of resizing that the graph doesn't take.
    """

    def __init__(
        self,
        engine: Engine,
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        multiple: int | None = None,
    ):
        self.engine = engine
        self.score_rule = config.get("score_rule") or "global"
        self.thresholds_for = config.get("thresholds_for") or self.score_rule
        self.thresholds = {name: config.get(name) for name in THRESHOLDS}
        check_options({**self.thresholds, "score_rule": self.score_rule})
        names = ("sigma", "resample", "rescale_factor", "image_mean", "image_std", "do_rescale", "do_normalize")
        self.processor: dict[str, Any] = {name: processor.get(name) for name in names}
        check_options(self.processor)
        if missing := [name for name, value in self.processor.items() if value is None]:
            raise ValueError(f"preprocessor_config.json lacks {', '.join(missing)}: export the model again")
        self.multiple = multiple
        self.resize = self._check_resize(processor.get("resize", "square"))
        self.size = (int(processor["size"]["width"]), int(processor["size"]["height"]))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, num_threads: int | None = None) -> AnomalyCLIPExported:
        """Load a folder that `anomalyclip export` wrote.

        Args:
            folder (`str` or `os.PathLike`).
            num_threads (`int`, *optional*): of the engine; its own choice if absent.

        Raises:
            OSError: there is no exported model.
            ImportError: its engine isn't installed.
            ValueError: it is damaged.
        """
        facts = read_facts(folder)
        engine, multiple = load_engine(folder, facts, num_threads), multiple_of_sides(facts)
        return cls(engine, read_json(folder, "config.json"), read_json(folder, "preprocessor_config.json"), multiple)

    def __call__(self, inputs: Any, batch_size: int = 1, **options: Any) -> Any:
        """Score images.

        Args:
            inputs: a path, URL, open binary file, the bytes of a file, PIL image or array; or several, as of
                [`images_of`].
            batch_size (`int`, defaults to 1).
            **options: sigma, image_threshold, pixel_threshold, min_area, roi, score_rule, window, channels, timeout
                and max_bytes as of the pipeline; resize is "square" or, where the sides of the graph's input are open,
                "fit".

        Returns:
            a `dict` for one image, a list of them, or an iterator for an iterator: `score` (float, P(anomalous)),
            `anomaly_map` (float32 array (h, w) in [0, 1], at the image's own size) and, where thresholds are set,
            `label`, `mask` (bool array) and, with scikit-image, `regions`.

        Raises:
            ValueError: an image can't be read, or an option is out of its range.
            TypeError: there is no such option.
        """
        if inputs is None:
            raise ValueError("inputs is None, expected a path, URL, PIL image or array, or a list of them")
        if not (type(batch_size) is int and batch_size > 0):
            raise ValueError(f"batch_size={batch_size!r}, expected a whole number above 0")
        resize = self._check_resize(options.pop("resize", None) or self.resize)
        reading, judging = self._sort_options(options)
        stored = [name for name in THRESHOLDS if judging.get(name) is not None and name not in options]
        if resize != self.resize and stored:
            warnings.warn(
                f"{' and '.join(stored)} were chosen with resize={self.resize!r} and hold for that, not for "
                f"{resize!r}; calibrate with that, or give thresholds yourself",
                stacklevel=2,
            )
        images = images_of(inputs)
        found = self._stream([inputs] if images is None else images, batch_size, resize, reading, judging)
        if images is None:
            return next(found)
        return found if isinstance(inputs, Iterator) else list(found)

    def _check_resize(self, resize: str) -> str:
        known = ("square", "fit") if self.multiple else ("square",)
        if resize not in known:
            raise ValueError(f"resize={resize!r}, expected {' or '.join(known)}, which the exported graph takes")
        return resize

    def _sort_options(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of reading and of judging, checked."""
        given = {name: value for name, value in options.items() if value is not None}
        if unknown := sorted(set(given) - {*CALLING, *JUDGING}):
            raise TypeError(f"unknown arguments {unknown}; known are {', '.join(JUDGING + CALLING)}")
        check_options({name: given.get(name) for name in ("timeout", "max_bytes")})
        for name, check in (("window", check_window), ("channels", check_channels), ("roi", read_roi)):
            if name in given:
                given[name] = check(given[name])
        judging = {"score_rule": self.score_rule, **{name: given[name] for name in JUDGING if name in given}}
        judging = {**self._fitting_thresholds(judging["score_rule"]), **judging}
        check_options({name: value for name, value in judging.items() if name != "roi"})
        if judging.get("sigma", 0) > (most := max(*self.size, 64)):
            raise ValueError(f"sigma={judging['sigma']!r}, expected 0 to {most} pixels, the input's own side")
        return {name: given[name] for name in CALLING if name in given}, judging

    def _fitting_thresholds(self, score_rule: str) -> dict[str, Any]:
        """The stored thresholds that were chosen for this score; a warning where one wasn't."""
        with_references = self.thresholds_for.endswith(WITH_REFERENCES)
        fits = {"image_threshold": self.thresholds_for == score_rule, "pixel_threshold": not with_references}
        if lost := [name for name, value in self.thresholds.items() if value is not None and not fits[name]]:
            warnings.warn(
                f"{' and '.join(lost)} were chosen for the score {self.thresholds_for!r}, not for {score_rule!r}: "
                "they are not used. Calibrate anew, or give thresholds yourself",
                stacklevel=4,
            )
        return {name: value if fits[name] else None for name, value in self.thresholds.items()}

    def _stream(
        self,
        images: Iterable[Any],
        batch_size: int,
        resize: str,
        reading: Mapping[str, Any],
        judging: Mapping[str, Any],
    ) -> Iterator[dict[str, Any]]:
        images = iter(images)
        batch_size = 1 if resize == "fit" else batch_size  # each image has a size of its own
        while batch := [read_image(image, **reading) for image in islice(images, batch_size)]:
            logits, maps = self.engine(np.stack([self.prepare(image, resize) for image in batch]))
            for image, image_logits, anomaly_map in zip(batch, logits, maps, strict=True):
                yield self.judge(image_logits, anomaly_map, image.size, **judging)

    def prepare(self, image: Image.Image, resize: str = "square") -> np.ndarray:
        """What the graph takes of an upright 8-bit image: `(3, S, S)` float32, or of the image's own ratio."""
        settings = self.processor
        return normalized_pixels(
            image,
            self.size if resize == "square" else fit_size(image.size, max(self.size), self.multiple),
            settings["resample"],
            settings["rescale_factor"] if settings["do_rescale"] else None,
            (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else None,
        )

    def judge(
        self,
        logits: np.ndarray,
        anomaly_map: np.ndarray,
        image_size: tuple[int, int],
        sigma: float | None = None,
        image_threshold: float | None = None,
        pixel_threshold: float | None = None,
        min_area: int = 1,
        roi: Any = None,
        score_rule: str = "global",
    ) -> dict[str, Any]:
        """The result of one image.

        Args:
            logits `(2,)` and anomaly_map `(S, S)`: what the graph gave, float32.
            image_size: width and height of the image in pixels.
            others: as of a call.
        """
        if not (np.isfinite(logits).all() and np.isfinite(anomaly_map).all()):
            raise ValueError(f"the output is not finite (logits {logits.tolist()}): export the model again")
        sigma = float(self.processor["sigma"]) if sigma is None else float(sigma)
        if sigma:
            down, across = (smoothing_matrix(side, sigma) for side in anomaly_map.shape)
            anomaly_map = down @ anomaly_map @ across.T
        score = float(1 / (1 + np.exp(np.float64(logits[0]) - np.float64(logits[1]))))
        if score_rule != "global":
            pixels = np.sort(anomaly_map.ravel().clip(0, 1))[::-1]
            highest = float(pixels[: max(1, len(pixels) // 100)].mean())
            score = float(pixels[0]) if score_rule == "max" else (score + highest) / 2
        anomaly_map = _resized_map(anomaly_map, image_size[::-1])
        result: dict[str, Any] = {"score": score, "anomaly_map": anomaly_map}
        if image_threshold is not None:
            result["label"] = "anomalous" if score >= image_threshold else "normal"
        if pixel_threshold is not None:
            result |= _mark(anomaly_map, pixel_threshold, min_area, roi)
        return result


def _resized_map(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map `(h, w)` float32 at another size (H, W): bilinear between the centers of pixels, as torch does it.

    Unlike PIL, which takes means where it reduces a map.
    """
    for axis, side in enumerate(size):
        length = anomaly_map.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * (length / side) - 0.5, 0, None)
        before = place.astype(np.intp)
        after = np.minimum(before + 1, length - 1)
        share = (place - before).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        low, high = np.take(anomaly_map, before, axis), np.take(anomaly_map, after, axis)
        anomaly_map = low * (1 - share) + high * share
    return anomaly_map


def _mark(anomaly_map: np.ndarray, pixel_threshold: float, min_area: int, roi: Any) -> dict[str, Any]:
    """Mask and regions; without scikit-image the mask alone, where all regions count."""
    try:
        mask, regions = mark_regions(anomaly_map, pixel_threshold, min_area, roi)
    except ImportError:
        if min_area > 1:
            raise
        mask = anomaly_map >= pixel_threshold
        return {"mask": mask if roi is None else mask & fit_roi(roi, mask.shape[::-1])}
    return {"mask": mask, "regions": regions}


__all__ = ["AnomalyCLIPExported"]
