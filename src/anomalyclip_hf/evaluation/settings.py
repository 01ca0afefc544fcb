"""How a data set is judged: the settings of `evaluate_model` and of `anomalyclip evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..configuration_anomalyclip import check_fields
from ..data.files import MAP_FORMATS
from ..data.options import option
from ..options_anomalyclip import THRESHOLDS
from .metrics import asked_metrics, check_fpr_limit

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel

EXACT_PIXELS = 2**22
_GROUP = "Judging"


@dataclass
class EvaluationSettings:
    """How a data set is judged.

    Sizes of maps are those that pixels are judged at: None is the model's input size, as the authors do it (masks are
    resized to it), or each image's own where the processor doesn't make squares. `exact` keeps whole maps on disk,
    class by class (1 MB an image and method at 518 pixels); counts take 25 MB a method whatever the number of images;
    None is exact for classes of at most `EXACT_PIXELS` pixels.

    Raises:
        ValueError: a field out of its range.
    """

    batch_size: int = option(8, "Images per forward, in each process.", group=_GROUP)
    num_workers: int = option(0, "Processes that decode images, per evaluating process.", group=_GROUP)
    sigma: float | None = option(
        None, "Smoothing of maps in pixels at the input size; the processor's own.", group=_GROUP
    )
    map_size: str | int | None = option(
        None, "Judge pixels at 'original' size, or at so many pixels square.", group=_GROUP
    )
    exact: bool | None = option(
        None,
        "Judge pixels from whole maps, or from counts within 1e-4; small classes exactly by default.",
        group=_GROUP,
    )
    fpr_limit: float = option(0.3, "Highest false-positive rate of AUPRO.", group=_GROUP)
    fpr_limits: list[float] | None = option(
        None, "More limits, of 0.01 0.05 0.1 0.3 1: each adds an AUPRO of its own.", group=_GROUP
    )
    image_threshold: float | None = option(None, "Score of image F1; the model's own.", group=_GROUP)
    pixel_threshold: float | None = option(None, "Map value of pixel F1 (SegF1); the model's own.", group=_GROUP)
    draws: int = option(3, "Draws of references, for each number of them.", group=_GROUP)
    save_maps: str | None = option(
        None, "Keep the maps: 'png' (16 bit), 'npy' or 'tiff' (float16).", bare="png", group=_GROUP
    )
    save_every: int = option(50, "Batches between two writes of records.", group=_GROUP)
    num_bins: int = 2**20  # of the counts

    def __post_init__(self):
        if isinstance(self.map_size, str) and self.map_size.isdecimal():
            self.map_size = int(self.map_size)
        for name in ("batch_size", "save_every", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected 1 or more")
        size = self.map_size
        if not (size in (None, "original") or (isinstance(size, int) and size >= 1)):
            raise ValueError(f"map_size={size!r}, expected None (the model's input), 'original' or a number of pixels")
        if self.save_maps is not None and self.save_maps not in MAP_FORMATS:
            raise ValueError(f"save_maps={self.save_maps!r}, expected {' or '.join(map(repr, MAP_FORMATS))}")

        check_fpr_limit(self.fpr_limit)
        check_fields({name: getattr(self, name) for name in THRESHOLDS})
        asked_metrics("pixel", fpr_limits=self.fpr_limits or ())

    def with_those_of(self, model: AnomalyCLIPModel) -> EvaluationSettings:
        """These settings, with a model's where none are given: thresholds, if they fit its scores, and its profile's
        smoothing."""
        own = model.fitting_thresholds() | {"sigma": getattr(model.profile, "sigma", None)}
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    def is_exact(self, num_images: int, input_size: int) -> bool:
        """Whether a class of so many images is judged exactly, by a model of an input size in pixels."""
        side = self.map_size or input_size
        return self.exact if self.exact is not None else isinstance(side, int) and num_images * side**2 <= EXACT_PIXELS
