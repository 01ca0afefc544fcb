"""Saturated per-region overlap (sPRO), by which MVTec LOCO AD is judged.

A defect counts as found where a part of it is that is large enough, be it that a missing object could be anywhere in
its region: sPRO is the mean over all regions of min(|found in the region| / s, 1), with a saturation s of pixels for
each region, at most its area (Bergmann et al., Beyond Dents and Scratches, IJCV 2022). With s = area it is PRO.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import ImageReadError, mask_files
from ..data.reader import open_image
from ..scoring.ranking import check_pair, rank_exactly, why_undefined
from .metrics import area_under_pro, check_fpr_limit

DEFECTS = "defects_config.json"
Region = tuple[np.ndarray, float]  # (H, W) bool, and its saturation in pixels


def area_under_spro(maps: Sequence[np.ndarray], regions: Sequence[Sequence[Region]], fpr_limit: float = 0.05) -> float:
    """Area under saturated per-region overlap against FPR from 0 to `fpr_limit`, divided by it; exact.

    Args:
        maps: `(H, W)` float maps, finite, higher is more anomalous.
        regions: of each image, none of a normal one: mask `(H, W)` bool and saturation in pixels, cut to its area;
            those of one image may overlap. False positives are counted outside of all of them.
        fpr_limit: in (0, 1]; 0.05 is what is published.

    Raises:
        ValueError: shapes that do not match, NaN, an empty region, no saturation above 0, no region, all anomalous.
    """
    check_fpr_limit(fpr_limit)
    if len(maps) != len(regions):
        raise ValueError(f"{len(maps)} maps but regions of {len(regions)} images: give a list for each map")
    parts = []
    for index, (anomaly_map, own) in enumerate(zip(maps, regions, strict=True)):
        union = np.any([mask for mask, _ in own], axis=0) if own else np.zeros(np.shape(anomaly_map), bool)
        scores, truth = check_pair(anomaly_map, union, index)
        if not np.isfinite(scores).all():
            raise ValueError(f"maps[{index}] has NaN or infinite values but finite scores are expected")
        weights = np.zeros(scores.shape)
        for mask, saturation in own:
            falling = np.sort(scores[mask])[::-1]
            if not (saturation > 0 and len(falling)):
                raise ValueError(
                    f"regions[{index}] has one of {len(falling)} pixels with saturation={saturation}; expected both "
                    "above 0"
                )
            # The first s pixels found of a region are all that counts; each of them for 1 / s.
            enough = min(float(saturation), len(falling))
            counted = np.clip(enough - np.arange(len(falling)), 0.0, 1.0) / enough
            places = np.flatnonzero(mask)
            weights.ravel()[places[np.argsort(-scores[mask], kind="stable")]] += counted
        parts.append((scores[~truth], scores[truth], weights[truth]))
    ranking = rank_exactly(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    if reason := why_undefined(ranking, needs_regions=True, unit="pixel"):
        raise ValueError(f"sPRO is not defined: {reason}")
    return area_under_pro(ranking, fpr_limit)


def judge_saturated(maps: Sequence[np.ndarray] | None, paths: Sequence[str]) -> dict[str, Any]:
    """sPRO of images of a class that lie as MVTec LOCO AD's do (`<class>/<split>/<kind>/<stem>`), beside masks and a
    `defects_config.json`: `spro`, and `reasons` where it is NaN; nothing where there is no such file. `maps` are
    `(H, W)`, None where they were counted in bins."""
    roots = [Path(path).parents[2] if len(Path(path).parts) > 3 else Path() for path in paths]
    if not any((root / DEFECTS).is_file() for root in set(roots)):
        return {}
    try:
        if maps is None:
            raise ValueError("sPRO needs whole maps: give exact=True (--exact)")
        regions = []
        for root, path, anomaly_map in zip(roots, paths, maps, strict=True):
            masks = root / "ground_truth" / Path(path).parent.name / Path(path).stem
            regions.append(read_regions(masks, root / DEFECTS, anomaly_map.shape) if masks.is_dir() else [])
        return {"spro": area_under_spro(maps, regions), "reasons": {}}
    except (OSError, ValueError) as error:  # of these files alone; the other metrics stand
        return {"spro": math.nan, "reasons": {"spro": str(error)}}


def read_regions(
    masks: str | os.PathLike, defects: str | os.PathLike, shape: tuple[int, ...] | None = None
) -> list[Region]:
    """The regions of one image of MVTec LOCO AD: each mask file is one, whatever its pieces.

    Args:
        masks: the image's folder of masks, whose value above 0 names the kind of defect; or one mask.
        defects: `defects_config.json` of its class: for each `pixel_value`, `saturation_threshold` in pixels or, where
            `relative_saturation`, as share of the region.
        shape: (height, width) that regions are resized to, saturations with them; the masks' own by default.

    Raises:
        ImageReadError: a mask that can't be read, is empty, or has a value that `defects` doesn't name.
        ValueError: `defects` is no such file.
    """
    try:
        with open(defects, encoding="utf-8") as file:
            rules = {int(one["pixel_value"]): one for one in json.load(file)}
            limits = {
                value: (float(one["saturation_threshold"]), bool(one["relative_saturation"]))
                for value, one in rules.items()
            }
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{os.fspath(defects)} is no list of pixel_value, saturation_threshold, ...: {error}"
        ) from error
    found: list[Region] = []
    for path in mask_files(os.fspath(masks)):
        values = np.asarray(open_image(path))
        named = sorted(set(np.unique(values).tolist()) - {0})
        if values.ndim != 2 or len(named) != 1 or named[0] not in limits:
            raise ImageReadError(f"{path}: values {named}, expected one channel and one value of {sorted(limits)}")
        saturation, is_relative = limits[named[0]]
        area = np.count_nonzero(values)
        share = saturation if is_relative else min(saturation / area, 1.0)
        height, width = shape or values.shape
        cover = np.asarray(
            Image.fromarray((values > 0).astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        )
        mask = cover >= min(128, cover.max())  # the smallest regions stay too
        found.append((mask, share * np.count_nonzero(mask)))
    return found
