"""What is kept of a class while its images are scored: scores, and pixels counted or whole."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..data.files import atomic_path
from .metrics import UndefinedMetricWarning, image_metrics, pixel_metrics
from .streaming import StreamingPixelMetrics

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_authors")
METRICS = IMAGE_METRICS + PIXEL_METRICS


class ClassTally:
    """Collects the results of one class, by one process, for any number of methods.

    Args:
        methods: their names.
        exact: keep whole maps in float32 instead of counting pixels in bins.
        num_bins, fpr_limit: as in [`StreamingPixelMetrics`].
    """

    def __init__(self, methods: Sequence[str], exact: bool = False, num_bins: int = 2**20, fpr_limit: float = 0.3):
        self.methods, self.exact, self.fpr_limit = list(methods), exact, fpr_limit
        self.num_bins = num_bins
        self.indices: list[int] = []
        self.scores: dict[str, list[float]] = {name: [] for name in self.methods}
        # position of an image that could not be read -> why
        self.unreadable: dict[int, str] = {}
        # exact: position of an image in the data set -> its maps, method by method, and its mask
        self.maps: dict[int, tuple[dict[str, np.ndarray], np.ndarray]] = {}
        self.pixels: dict[str, StreamingPixelMetrics] = {}

    def add(
        self,
        indices: Sequence[int],
        scores: dict[str, list[float]],
        maps: dict[str, list[np.ndarray]],
        masks: Sequence[np.ndarray | None],
    ) -> None:
        """Add a batch.

        Args:
            indices: positions of its images in the data set.
            scores: method to B scores.
            maps: method to B maps `(H, W)`.
            masks: B masks `(H, W)` bool, None where the pixels' truth is unknown.
        """
        self.indices += indices
        known = [place for place, mask in enumerate(masks) if mask is not None]
        for name in self.methods:
            self.scores[name] += scores[name]
            if known and not self.exact:
                pixels = self.pixels.setdefault(name, StreamingPixelMetrics(self.num_bins, self.fpr_limit))
                pixels.update([maps[name][place] for place in known], [masks[place] for place in known])
        if self.exact:
            for place in known:
                mask = masks[place]
                assert mask is not None
                own = {name: np.array(maps[name][place], dtype=np.float32) for name in self.methods}
                self.maps[indices[place]] = (own, mask)

    def state(self) -> dict[str, Any]:
        """Everything as plain numbers and arrays, to send to another process."""
        pixels = {name: one.state_dict() for name, one in self.pixels.items()}
        return {
            "indices": self.indices,
            "scores": self.scores,
            "maps": self.maps,
            "pixels": pixels,
            "unreadable": self.unreadable,
        }

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another process collected (its `state()`)."""
        self.indices += state["indices"]
        for name in self.methods:
            self.scores[name] += state["scores"][name]
        self.maps.update(state["maps"])
        self.unreadable.update(state["unreadable"])
        for name, pixels in state["pixels"].items():
            other = StreamingPixelMetrics.from_state_dict(pixels)
            self.pixels[name] = self.pixels[name].merge(other) if name in self.pixels else other

    def sort(self) -> None:
        """Put scores and maps into the data set's order, so that nothing depends on who scored what."""
        order = np.argsort(self.indices, kind="stable").tolist()
        self.indices = [self.indices[place] for place in order]
        self.scores = {name: [values[place] for place in order] for name, values in self.scores.items()}
        self.maps = dict(sorted(self.maps.items()))
        self.unreadable = dict(sorted(self.unreadable.items()))

    def compute(self, name: str, labels: Sequence[int | None], with_curves: bool = False) -> dict[str, Any]:
        """Metrics of one method.

        Args:
            name: the method.
            labels: label of each image of the whole data set; None where it is unknown.
            with_curves: add `curves`.

        Returns:
            `METRICS` in [0, 1], NaN where undefined, thresholds of both F1-max, counts, and `reasons` for each NaN.
        """
        known = [(score, labels[i]) for i, score in zip(self.indices, self.scores[name], strict=True)]
        judged = [(score, label) for score, label in known if label is not None]
        values: dict[str, Any] = dict.fromkeys(METRICS, math.nan)
        reasons: dict[str, str] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)  # the reasons are in the result
            if judged:
                found = image_metrics([score for score, _ in judged], [label for _, label in judged])
                reasons |= found.pop("reasons")
                values |= found
            else:
                reasons |= dict.fromkeys(
                    IMAGE_METRICS, "no image has a label" if self.indices else "no image could be read"
                )
                values |= {"num_images": 0, "num_anomalous_images": 0}
            found = self._pixel_metrics(name, with_curves)
        anomalous = values["num_anomalous_images"]
        if anomalous and not found.get("num_anomalous_pixels"):
            reason = f"none of the {anomalous} anomalous images has a mask with an anomalous pixel"
            found["reasons"] = dict.fromkeys(PIXEL_METRICS, reason)
        reasons |= found.pop("reasons")
        values |= found
        values["num_images"] = len(self.indices)
        return values | {"reasons": reasons}

    def _pixel_metrics(self, name: str, with_curves: bool) -> dict[str, Any]:
        if self.maps:
            maps = [own[name] for own, _ in self.maps.values()]
            found = pixel_metrics(maps, [mask for _, mask in self.maps.values()], self.fpr_limit, with_curves)
            return found | {"num_judged_maps": len(maps)}
        if name in self.pixels:
            found = self.pixels[name].compute(with_curves)
            return found | {"num_judged_maps": found.pop("num_images")}
        return {"reasons": dict.fromkeys(PIXEL_METRICS, "no image has a mask"), "num_judged_maps": 0}

    def save(self, path: str | os.PathLike, key: str, batches: int) -> None:
        """Write all of it to an .npz file without pickles, atomically; not for exact tallies.

        Args:
            path: file to write.
            key: what the run depends on, compared by `load`.
            batches: how many batches have been added.
        """
        arrays: dict[str, Any] = {
            "key": np.array(key),
            "batches": np.array(batches),
            "indices": np.array(self.indices, dtype=np.int64),
        }
        arrays |= {"unreadable": np.array(list(self.unreadable), dtype=np.int64)}
        arrays |= {"errors": np.array(list(self.unreadable.values()), dtype=np.str_)}
        for name in self.methods:
            arrays[f"scores/{name}"] = np.array(self.scores[name], dtype=np.float64)
            if name in self.pixels:
                arrays |= {f"pixels/{name}/{k}": v for k, v in self.pixels[name].state_dict().items()}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{key: np.asarray(value) for key, value in arrays.items()})  # type: ignore[arg-type]

    def load(self, path: str | os.PathLike, key: str) -> int:
        """Take up what `save` wrote, and answer the number of batches: 0 without a file of the same run."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, BadZipFile):
            return 0
        if str(arrays.get("key")) != key:
            return 0
        self.indices = arrays["indices"].tolist()
        self.unreadable = dict(zip(arrays["unreadable"].tolist(), arrays["errors"].tolist(), strict=True))
        for name in self.methods:
            self.scores[name] = arrays[f"scores/{name}"].tolist()
            prefix = f"pixels/{name}/"
            state = {entry[len(prefix) :]: value for entry, value in arrays.items() if entry.startswith(prefix)}
            if state:
                self.pixels[name] = StreamingPixelMetrics.from_state_dict(state)
        return int(arrays["batches"])
