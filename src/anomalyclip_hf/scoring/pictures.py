"""Pictures of maps: colors, overlays and the legend of a run.

A run has ONE scale. `vmin` and `vmax` are the ends of the color map for every picture of it: 0 and 1 for the
probabilities of AnomalyCLIP, or what `evaluation.visualization.fit_scale` finds over all maps. The color
map is perceptually uniform and readable for the color-blind.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..images_anomalyclip import load_image
from .ranking import to_numpy

# Red, green and blue of matplotlib's "inferno", in hexadecimal: matplotlib takes a second to load.
_INFERNO = (
    "00000401000501010601010802010a02020c02020e03021004031204031405041706041907051b08051d09061f0a07220b07240c0826"
    "0d08290e092b10092d110a30120a32140b34150b37160b39180c3c190c3e1b0c411c0c431e0c451f0c48210c4a230c4c240c4f260c51"
    "280b53290b552b0b572d0b592f0a5b310a5c320a5e340a5f3609613809623909633b09643d09653e0966400a67420a68440a68450a69"
    "470b6a490b6a4a0c6b4c0c6b4d0d6c4f0d6c510e6c520e6d540f6d550f6d57106e59106e5a116e5c126e5d126e5f136e61136e62146e"
    "64156e65156e67166e69166e6a176e6c186e6d186e6f196e71196e721a6e741a6e751b6e771c6d781c6d7a1d6d7c1d6d7d1e6d7f1e6c"
    "801f6c82206c84206b85216b87216b88226a8a226a8c23698d23698f24699025689225689326679526679727669827669a28659b2964"
    "9d29649f2a63a02a63a22b62a32c61a52c60a62d60a82e5fa92e5eab2f5ead305dae305cb0315bb1325ab3325ab43359b63458b73557"
    "b93556ba3655bc3754bd3853bf3952c03a51c13a50c33b4fc43c4ec63d4dc73e4cc83f4bca404acb4149cc4248ce4347cf4446d04545"
    "d24644d34743d44842d54a41d74b3fd84c3ed94d3dda4e3cdb503bdd513ade5238df5337e05536e15635e25734e35933e45a31e55c30"
    "e65d2fe75e2ee8602de9612bea632aeb6429eb6628ec6726ed6925ee6a24ef6c23ef6e21f06f20f1711ff1731df2741cf3761bf37819"
    "f47918f57b17f57d15f67e14f68013f78212f78410f8850ff8870ef8890cf98b0bf98c0af98e09fa9008fa9207fa9407fb9606fb9706"
    "fb9906fb9b06fb9d07fc9f07fca108fca309fca50afca60cfca80dfcaa0ffcac11fcae12fcb014fcb216fcb418fbb61afbb81dfbba1f"
    "fbbc21fbbe23fac026fac228fac42afac62df9c72ff9c932f9cb35f8cd37f8cf3af7d13df7d340f6d543f6d746f5d949f5db4cf4dd4f"
    "f4df53f4e156f3e35af3e55df2e661f2e865f2ea69f1ec6df1ed71f1ef75f1f179f2f27df2f482f3f586f3f68af4f88ef5f992f6fa96"
    "f8fb9af9fc9dfafda1fcffa4"
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
    alpha: float = 0.5,
) -> Image.Image:
    """Lay a map over its image, at the image's size.

    The image is shown in gray, so that all color comes from the map, which covers it more the higher it is: by half
    of `alpha` at `vmin`, by 1.5 times `alpha` (at most wholly) at `vmax`.

    Args:
        image: PIL image, any mode.
        anomaly_map: `(h, w)` float; resized bilinearly where its size differs.
        vmin, vmax: the scale of the run.
        alpha: in [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha} but a share in [0, 1] is expected")
    gray = np.asarray(to_rgb(image).convert("L"), dtype=np.float32)[..., None]
    levels = _levels(resize_map(anomaly_map, image.size), vmin, vmax)
    cover = np.minimum(1.0, alpha * (0.5 + np.arange(256, dtype=np.float32) / 255.0))[levels][..., None]
    blended = gray * (1.0 - cover) + _colors()[levels] * cover
    return Image.fromarray((blended + 0.5).astype(np.uint8))


def draw_legend(vmin: float, vmax: float, width: int = 320) -> Image.Image:
    """Draw the color scale of a run with its two ends and its middle written below."""
    legend = Image.new("RGB", (width + 40, 52), "white")
    legend.paste(colorize(np.linspace(vmin, vmax, width)[None].repeat(20, axis=0), vmin, vmax), (20, 8))
    draw = ImageDraw.Draw(legend)
    for share, text in ((0.0, f"{vmin:g} normal"), (0.5, f"{(vmin + vmax) / 2:g}"), (1.0, f"{vmax:g} anomalous")):
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
    """The 256 colors of the color map, `(256, 3)` uint8."""
    return np.frombuffer(bytes.fromhex(_INFERNO), np.uint8).reshape(256, 3)
