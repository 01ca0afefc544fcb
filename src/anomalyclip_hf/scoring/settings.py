"""How images are predicted: the settings of `predict_files` and `predict_dataset`, and of `anomalyclip predict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..data.files import MAP_FORMATS
from ..data.options import option
from .pictures import DISTANCE_VMAX

OVERLAYS = ("all", "anomalous", "none")
TABLES = ("parquet", "csv")
FORMATS = ("jsonl", *TABLES)


@dataclass
class PredictionSettings:
    """How images are predicted.

    Maps and masks have the image's own size. As many threads draw as `num_workers` processes decode; with 0 this
    process does all. `formats` are those of the records, of `FORMATS`; "jsonl" is always written. `progress` shows a
    bar.

    Raises:
        ValueError: a field out of its range.
    """

    batch_size: int = option(1, "Images per forward, 1 or more.")
    num_workers: int = option(0, "Processes that decode and resize images.")
    resume: bool = option(
        False, "Go on with the run in the output folder, whatever ended it; skipped images are tried again."
    )
    mutual: bool = option(
        False, "Let unlabelled images judge one another: patches that few of the others know are odd.", group="Score"
    )
    block_size: int = option(200, "Images that judge one another, for --mutual.", group="Score")
    overlays: str = option("all", "Heat maps of which images: all, anomalous or none.", group="Results")
    masks: bool = option(False, "Write masks too, as PNG: 255 from the threshold of pixels on.", group="Results")
    save_maps: str | None = option(
        None, "Keep raw maps too: png16 (65535 is 1.0; png is the same), npy or tiff.", bare="png16", group="Results"
    )
    vmin: float = option(0.0, "Map value of the first color, for the whole run.", group="Results")
    vmax: float | None = option(
        None,
        f"Map value of the last color; 1, or {DISTANCE_VMAX} where maps are distances to other images.",
        group="Results",
    )
    formats: Sequence[str] = ("jsonl",)
    progress: bool = True

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}, expected 1 or more")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}, expected 0 or more")
        if self.save_maps is not None and self.save_maps not in MAP_FORMATS:
            raise ValueError(f"save_maps={self.save_maps!r}, expected one of {', '.join(MAP_FORMATS)}")
        if self.overlays not in OVERLAYS:
            raise ValueError(f"overlays={self.overlays!r}, expected one of {', '.join(OVERLAYS)}")
        if unknown := [one for one in self.formats if one not in FORMATS]:
            raise ValueError(f"formats={unknown[0]!r}, expected some of {', '.join(FORMATS)}")
        if not (math.isfinite(self.vmin) and (self.vmax is None or self.vmin < self.vmax < math.inf)):
            raise ValueError(f"vmin={self.vmin}, vmax={self.vmax}, expected finite values, vmin < vmax")

    def facts(self) -> dict[str, Any]:
        """What of it decides the records and their files."""
        others = ("batch_size", "num_workers", "formats", "resume", "progress")
        return {key: value for key, value in asdict(self).items() if key not in others}
