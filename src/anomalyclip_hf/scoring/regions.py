"""Regions: from an anomaly map and a pixel threshold to a list of places.

Coordinates are pixels of the image: pixel (column x, row y) covers [x, x + 1] x [y, y + 1], its center lies at
(x + 0.5, y + 0.5). scikit-image is imported where regions are asked for, and not before.
"""

import math
import os
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from ..data.paint import binary_mask, fit_mask
from ..data.reader import describe_source, open_image
from ..options_anomalyclip import check_options

Roi = Image.Image | list[list[float]]


def find_regions(
    anomaly_map: np.ndarray, pixel_threshold: float, min_area: int = 1, roi: Any = None
) -> list[dict[str, Any]]:
    """List the regions of a map: pixels at or above the threshold that touch, be it at a corner.

    Args:
        anomaly_map (`np.ndarray` of shape `(H, W)`, float in [0, 1]): at the image's size.
        pixel_threshold (`float` in [0, 1]): value from which a pixel is anomalous.
        min_area (`int`, pixels, defaults to 1): smaller regions are left out.
        roi (*optional*): region of interest, see [`read_roi`]; outside it nothing counts.

    Returns:
        `list[dict]`, largest peak first: `box` [x0, y0, x1, y1] (its edges), `area` (pixels), `share` (of the image,
        or of the region of interest), `peak` and `mean` (of the map), `centroid` [x, y], `polygon` (closed lists of
        [x, y]: the outer outline, then holes; it holds the centers of the region's pixels and no others).

    Raises:
        ValueError: if an argument is out of range, or the region of interest doesn't fit the map.
    """
    return mark_regions(anomaly_map, pixel_threshold, min_area, roi)[1]


def mark_regions(
    anomaly_map: np.ndarray,
    pixel_threshold: float,
    min_area: int = 1,
    roi: Any = None,
    image_size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """As [`find_regions`], with the mask `(H, W)` bool of the regions listed before them.

    `image_size` is (W, H) of the image in pixels where the map is of another size: `min_area`, `roi` and what is
    returned of regions are in pixels of the image, the mask is as large as the map.
    """
    check_options({"pixel_threshold": pixel_threshold, "min_area": min_area})
    if anomaly_map.ndim != 2 or not anomaly_map.size or not np.isfinite(anomaly_map).all():
        raise ValueError(f"anomaly_map has shape {anomaly_map.shape}, expected (H, W) of finite values")
    size = anomaly_map.shape[::-1]
    scale = np.divide(image_size or size, size)
    roi = None if roi is None else read_roi(roi)
    if isinstance(roi, list):
        roi = (roi / scale).tolist()
    elif roi is not None and image_size is not None:
        roi = fit_mask(roi, image_size, "given as roi").resize(size, Image.Resampling.NEAREST)
    inside = None if roi is None else _fit(roi, size)
    mask = anomaly_map >= float(pixel_threshold)
    if inside is not None:
        mask &= inside
    if not mask.any():
        return mask, []
    try:
        from skimage import measure
    except ImportError as error:
        raise ImportError("regions need scikit-image: pip install scikit-image") from error
    labels = measure.label(mask, connectivity=2)
    if min_area > 1:
        labels[np.bincount(labels.ravel())[labels] * scale.prod() < min_area] = 0
        mask = labels > 0
    total, regions = int(anomaly_map.size if inside is None else inside.sum()), []
    for region in measure.regionprops(labels):
        top, left, bottom, right = region.bbox
        values = anomaly_map[region.slice][region.image]
        outlines = (outline + (left, top) for outline in _outlines(region.image, measure))
        regions.append(
            {
                "box": np.rint([left, top, right, bottom] * np.tile(scale, 2)).astype(int).tolist(),
                "area": round(values.size * float(scale.prod())),
                "share": values.size / total,
                "peak": float(values.max()),
                "mean": float(values.mean(dtype=np.float64)),
                "centroid": ((np.array(region.centroid[::-1]) + 0.5) * scale).tolist(),
                "polygon": [(outline * scale).tolist() for outline in outlines],
            }
        )
    return mask, sorted(regions, key=lambda region: -region["peak"])


def _outlines(inside: np.ndarray, measure: ModuleType) -> list[np.ndarray]:
    """Outlines of one region, through the middles between its pixels and others; the outer one, then holes."""
    outlines = []
    for contour in measure.find_contours(np.pad(inside, 1).astype(np.float32), 0.5, fully_connected="high"):
        y, x = np.diff(contour, axis=0).T
        corners = contour[:-1][y * np.roll(x, 1) != x * np.roll(y, 1)]  # where it goes straight on, points say nothing
        outlines.append(np.concatenate([corners, corners[:1]])[:, ::-1] - 0.5)
    return sorted(outlines, key=polygon_area, reverse=True)


def polygon_area(outline: Any) -> float:
    """Area within a closed outline `(N, 2)`, in square pixels."""
    x, y = (np.asarray(outline, np.float64) - np.asarray(outline[0])).T
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2


def read_roi(roi: Any) -> Roi:
    """Read a region of interest once, for images of any size.

    Args:
        roi: a mask (path, PIL image, array or tensor; anomaly masks' rule: what is not black is inside), laid on the
            image as displayed, or a polygon, a list of three or more [x, y] in pixels of the image.

    Returns:
        `PIL.Image.Image` of mode L, 0 and 255; or the polygon.

    Raises:
        ValueError: if it can't be read, is no polygon, or nothing lies inside it.
    """
    if isinstance(roi, list | tuple):
        try:
            points = np.asarray(roi, np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise ValueError(f"roi={str(roi)[:100]}, expected a mask or three or more [x, y] in pixels of the image")
        return points.tolist()
    try:
        image = open_image(roi, is_mask=True) if isinstance(roi, str | os.PathLike) else roi
        mask = binary_mask(image, "roi", 127 if getattr(image, "format", None) in ("JPEG", "MPO") else 0)
    except Exception as error:
        raise ValueError(f"the region of interest can't be read: {error}") from error
    if mask.getextrema() == (0, 0):
        raise ValueError(f"roi {describe_source(roi)} is black: nothing lies inside it")
    return mask


def fit_roi(roi: Any, size: tuple[int, int]) -> np.ndarray:
    """A region of interest as bool `(H, W)`, at an image's size (W, H) in pixels; see [`read_roi`].

    A pixel is inside a polygon if its center is. A mask is scaled, where its sides are those of the image within 1 %.

    Raises:
        ValueError: if a mask is of another shape than the image, or no pixel lies inside.
    """
    return _fit(read_roi(roi), size)


def _fit(roi: Roi, size: tuple[int, int]) -> np.ndarray:
    if isinstance(roi, Image.Image):
        inside = np.asarray(fit_mask(roi, size, "given as roi")) > 0
    else:
        inside = _inside_polygon(tuple(map(tuple, roi)), tuple(size))
    if not inside.any():
        raise ValueError(f"no pixel of the image of {size[0]}x{size[1]} pixels lies inside the roi: check its place")
    return inside


@lru_cache(maxsize=2)
def _inside_polygon(points: tuple[tuple[float, float], ...], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers lie inside, by the even-odd rule: each edge flips what lies right of it."""
    width, height = size
    flips = np.zeros((height, width + 1), bool)
    for edge in zip(points, points[1:] + points[:1], strict=True):
        (x0, y0), (x1, y1) = sorted(edge, key=lambda point: point[1])
        rows = np.arange(max(math.ceil(y0 - 0.5), 0), min(math.ceil(y1 - 0.5), height))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            flips[rows, np.ceil(np.clip(x - 0.5, 0, width)).astype(int)] ^= True
    inside = np.logical_xor.accumulate(flips, axis=1)[:, :-1]
    inside.flags.writeable = False  # it is kept
    return inside
