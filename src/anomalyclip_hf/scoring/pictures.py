"""Pictures of maps: colors, overlays and the legend of a run.

A run has ONE scale. `vmin` and `vmax` are the ends of the color map for every picture of it: 0 and 1 for the
probabilities of AnomalyCLIP, or what `evaluation.visualization.fit_scale` finds over all maps. The color
map is perceptually uniform and readable for the color-blind.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..data.reader import load_image
from .ranking import to_numpy

DISTANCE_VMAX = 0.5  # of distances to references, or of images to one another: that of an orthogonal patch
# Every fifth of the 256 colors of matplotlib's "inferno", in hexadecimal: matplotlib takes a second to load.
_INFERNO = (
    "00000402020c0504170a072210092d160b391e0c45260c512f0a5b380962400a67490b6a510e6c59106e61136e69166e71196e781c6d"
    "801f6c88226a902568982766a02a63a82e5fb0315bb73557bf3952c63d4dcc4248d34743d94d3ddf5337e45a31e9612bed6925f1711f"
    "f47918f78212f98b0bfa9407fb9d07fca60cfcb014fbba1ffac42af8cd37f6d746f4e156f2ea69f2f27df5f992fcffa4"
)


def colorize(anomaly_map: Any, vmin: float = 0.0, vmax: float = 1.0) -> Image.Image:
    """Paint a map: `vmin` and below get the first color, `vmax` and above the last.

    Args:
        anomaly_map: `(H, W)` float.
        vmin, vmax: the scale of the run.
    """
    return Image.fromarray(_colors()[_levels(anomaly_map, vmin, vmax)])


def overlay(
    image: Image.Image,
    anomaly_map: Any,
    vmin: float = 0.0,
    vmax: float = 1.0,
) -> Image.Image:
    """Lay a map over its image, at the image's size.

    The image is shown in gray, so that all color comes from the map, which covers it more the higher it is: by a
    quarter at `vmin`, by three quarters at `vmax`.

    Args:
        image: PIL image, any mode.
        anomaly_map: `(h, w)` float; resized bilinearly where its size differs.
        vmin, vmax: the scale of the run.
    """
    gray = np.asarray(to_rgb(image).convert("L"), dtype=np.float32)[..., None]
    levels = _levels(resize_map(anomaly_map, image.size), vmin, vmax)
    cover = (0.25 + np.arange(256, dtype=np.float32) / 510.0)[levels][..., None]
    blended = gray * (1.0 - cover) + _colors()[levels] * cover
    return Image.fromarray((blended + 0.5).astype(np.uint8))


def scale_labels(vmin: float, vmax: float) -> tuple[str, str, str]:
    """The two ends of a scale, and its middle between them, to a hundredth of its length: `0`, not `1.4e-10`."""
    digits = 2 - math.floor(math.log10(vmax - vmin))
    low, middle, high = (f"{round(value, digits):g}" for value in (vmin, (vmin + vmax) / 2, vmax))
    return low, middle, high


def draw_legend(vmin: float, vmax: float, width: int = 320) -> Image.Image:
    """Draw the color scale of a run with its two ends and its middle written below."""
    legend = Image.new("RGB", (width + 40, 52), "white")
    legend.paste(colorize(np.linspace(vmin, vmax, width)[None].repeat(20, axis=0), vmin, vmax), (20, 8))
    draw = ImageDraw.Draw(legend)
    low, middle, high = scale_labels(vmin, vmax)
    for share, text in ((0.0, f"{low} normal"), (0.5, middle), (1.0, f"{high} anomalous")):
        x = 20 + share * width - share * draw.textlength(text)
        draw.text((x, 32), text, fill="black")
    return legend


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, in 8 bits by the rule of the one reader; transparency turns white."""
    image = load_image(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        solid = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(solid, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_map(anomaly_map: Any, size: tuple[int, int]) -> np.ndarray:
    """Resize a map bilinearly to `(width, height)`; returns `(height, width)` float32."""
    values = np.asarray(to_numpy(anomaly_map), dtype=np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"anomaly_map has shape {values.shape} but (H, W) is expected")
    if values.shape == (size[1], size[0]):
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def _levels(anomaly_map: Any, vmin: float, vmax: float) -> np.ndarray:
    """Map values to color numbers 0 .. 255."""
    if not vmax > vmin:
        raise ValueError(f"vmin={vmin}, vmax={vmax} but vmin < vmax is expected: see fit_scale")
    values = np.asarray(to_numpy(anomaly_map), dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"anomaly_map has shape {values.shape} but (H, W) is expected")
    if np.isnan(values).any():
        raise ValueError("anomaly_map has NaN but finite values are expected: check the image and the model")
    return (np.clip((values - vmin) / (vmax - vmin), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


@functools.cache
def _colors() -> np.ndarray:
    """The 256 colors of the color map, `(256, 3)` uint8, within 1 of matplotlib's."""
    every_fifth = np.frombuffer(bytes.fromhex(_INFERNO), np.uint8).reshape(-1, 3).T
    colors = [np.interp(np.arange(256), np.arange(0, 256, 5), channel) for channel in every_fifth]
    return np.rint(np.stack(colors, axis=1)).astype(np.uint8)
