"""Pixel metrics of any number of images in a fixed amount of memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from ..scoring.histogram import PixelHistogram
from .metrics import check_fpr_limit, summarize_pixels


class StreamingPixelMetrics(PixelHistogram):
    """Accumulates maps and masks, then gives the metrics of `pixel_metrics` within 1e-4 of the exact ones.

    Args:
        num_bins: bins kept, 24 bytes each (25 MB by default).
        fpr_limit: highest false-positive rate of AUPRO, in (0, 1].
    """

    _settings: ClassVar[tuple[str, ...]] = ("num_bins", "fpr_limit")

    def __init__(self, num_bins: int = 2**20, fpr_limit: float = 0.3):
        check_fpr_limit(fpr_limit)
        super().__init__(num_bins)
        self.fpr_limit = float(fpr_limit)

    def compute(
        self, with_curves: bool = False, *, fpr_limits: Iterable[float] = (), threshold: float | None = None
    ) -> dict[str, Any]:
        """Return the dict of `pixel_metrics`, with `num_images` and `max_error` (of `pixel_auroc`) added.

        `aupro_authors` can be off by some 1e-3 where maps hold few different scores, and `pixel_f1` by the pixels that
        share the threshold's bin, which is at most 1e-4 of its value wide for scores in [0.0001, 1].

        Raises:
            ValueError: no image was added.
        """
        if self.num_images == 0:
            raise ValueError("no image was added: call update(maps, masks) first")
        result = summarize_pixels(
            self.ranking(), self.fpr_limit, with_curves, fpr_limits=fpr_limits, threshold=threshold
        )
        result |= {"num_images": self.num_images, "max_error": self.max_error()}
        if result["max_error"] > 0.01:
            warnings.warn(
                f"many scores share a bin: pixel_auroc is off by {result['max_error']:.2g} at most (equal "
                f"scores do no harm); if they differ, give more than num_bins={self.num_bins} or use pixel_metrics",
                stacklevel=2,
            )
        return result
