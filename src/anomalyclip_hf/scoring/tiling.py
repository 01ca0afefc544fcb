"""Large images: the whole view and overlapping tiles, whose maps are blended into one at the image's own size."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.reader import fit_size

TILES_PER_FORWARD = 8
WHOLE_SHARE = 0.5  # of the whole view in the map of a tiled image

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image


@dataclass(frozen=True)
class ImageTiles:
    """An image that is cut when it is scored, so that only its own pixels are held until then.

    Args:
        image (`PIL.Image.Image`): gray (`L`) or `RGB`.
        boxes (`list` of `(x0, y0, x1, y1)`, pixels): the tiles, row by row; none where the whole view is enough.
        settings (`dict`): what the image processor is called with for a tile.
    """

    image: Image.Image
    boxes: list[Box]
    settings: dict[str, Any]


class View(NamedTuple):
    """An image as a processor prepared it.

    Args:
        pixel_values: `(3, h, w)` float32.
        size: (height, width) of the image in pixels.
        tiles: of the image, where the processor makes them.
    """

    pixel_values: Tensor
    size: tuple[int, int]
    tiles: ImageTiles | None = None

    def to(self, device: torch.device) -> "View":
        """The same on a device."""
        return self._replace(pixel_values=self.pixel_values.to(device, non_blocking=True))


def tile_boxes(size: tuple[int, int], tile: int, overlap: float = 0.25) -> list[Box]:
    """Boxes of equal size that cover an image, evenly spread so that the last ones end at its borders.

    Args:
        size (`tuple[int, int]`): width and height of the image in pixels.
        tile (`int`, pixels of the image, 1 or more): side of a tile; less where the image is narrower.
        overlap (`float` in [0, 0.9]): least share of a tile that its neighbour covers too.

    Returns:
        `list` of `(x0, y0, x1, y1)`, row by row; empty where one tile would hold the whole image.
    """
    across, down = (_starts(length, tile, overlap) for length in size)
    boxes = [(x, y, min(x + tile, size[0]), min(y + tile, size[1])) for y in down for x in across]
    return boxes if len(boxes) > 1 else []


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    count = 1 + math.ceil((length - tile) / max(1, int(tile * (1 - overlap))))
    return [number * (length - tile) // (count - 1) for number in range(count)]


def cut_tiles(image: Image.Image, settings: Mapping[str, Any], given: Mapping[str, Any]) -> ImageTiles:
    """Tiles of an image, by the settings of an image processor and those that were given for one call."""
    side = max(settings["size"].width, settings["size"].height)
    boxes = tile_boxes(image.size, settings["tile_size"] or side, settings["overlap"])
    if not boxes:
        return ImageTiles(image, [], {})
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    x0, y0, x1, y1 = boxes[0]
    width, height = fit_size((x1 - x0, y1 - y0), side, settings["patch_size"])
    others = {name: value for name, value in given.items() if name not in ("tile_size", "overlap")}
    return ImageTiles(image, boxes, {**others, "resize": "square", "size": {"height": height, "width": width}})


def blend_weights(starts: Iterable[int], tile: int, length: int) -> dict[int, Tensor]:
    """Share of each tile in the map along one side of an image: raised cosines that sum to 1 in every pixel.

    Args:
        starts: first pixel of each tile; together they cover the side.
        tile (`int`): pixels of a tile along this side.
        length (`int`): pixels of the image along this side.

    Returns:
        start to `Tensor` of shape `(tile,)`, float32.
    """
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    starts, total = sorted(set(starts)), np.zeros(length)
    for start in starts:
        total[start : start + tile] += window
    return {start: torch.from_numpy(window / total[start : start + tile]).float() for start in starts}


@torch.no_grad()
def score_views(
    forward: Callable[[Tensor], Mapping[str, Tensor]],
    processor: Any,
    views: Sequence[View],
    sigma: float | None = None,
) -> list[dict[str, Tensor]]:
    """Score images prepared with `resize="fit"` or `"tile"`: maps are smoothed, and at the size of each image.

    The logits of a tiled image are those of its highest score: of the whole view or of a tile. Its map is the mean of
    the whole view's and of the tiles' blended one; each is smoothed at the model's input size. Beside the image
    itself, memory holds its map (4 bytes a pixel) twice at most, and `TILES_PER_FORWARD` tiles.

    Args:
        forward: takes `pixel_values` `(B, 3, h, w)`; returns `logits` `(B, 2)` and `anomaly_maps` `(B, h, w)`, or
            those of K methods, `(K, B, 2)` and `(K, B, h, w)`.
        processor ([`AnomalyCLIPImageProcessor`]): cuts, normalises and smooths.
        views: of the images, on the model's device.
        sigma (`float`, pixels at the model's input size, *optional*): smoothing; the processor's own if absent.

    Returns:
        for each image `logits` `(K, 2)` and `anomaly_maps` `(K, height, width)`, float32, and `reference_scores`
        `(K,)` where there are any; K = 1 without methods.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, (pixel_values, _, _) in enumerate(views):
        groups.setdefault(tuple(pixel_values.shape), []).append(place)
    results: dict[int, dict[str, Tensor]] = {}
    for places in groups.values():
        pixel_values = torch.stack([views[place][0] for place in places])
        scores, maps = _score(forward, processor, pixel_values, [views[place][1] for place in places], sigma)
        for row, place in enumerate(places):
            own = torch.stack(maps[row :: len(places)])
            results[place] = {**{key: value[:, row] for key, value in scores.items()}, "anomaly_maps": own}
    for place, (_, _, tiles) in enumerate(views):
        if tiles is not None and tiles.boxes:
            blended = results[place].pop("anomaly_maps")
            best = _add_tiles(forward, processor, tiles, results[place], blended, sigma)
            results[place] = {**best, "anomaly_maps": blended}
    return [results[place] for place in range(len(views))]


def score_of(output: Mapping[str, Tensor]) -> Tensor:
    """Scores of images by the global rule: of references where there are any, else P(anomalous)."""
    by_references = output.get("reference_scores")
    return output["logits"].float().softmax(dim=-1)[..., 1] if by_references is None else by_references.float()


def _score(
    forward: Callable, processor: Any, pixel_values: Tensor, sizes: list[tuple[int, int]], sigma: float | None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Logits `(K, B, 2)` and reference scores `(K, B)`, and the K x B smoothed maps, each at its size of `sizes`."""
    output = forward(pixel_values)
    maps, scores = output["anomaly_maps"], {"logits": output["logits"].float().reshape(-1, len(sizes), 2)}
    if output.get("reference_scores") is not None:
        scores["reference_scores"] = output["reference_scores"].float().reshape(-1, len(sizes))
    flat = {key: value.flatten(0, 1) for key, value in scores.items()}
    flat["anomaly_maps"] = maps.reshape(-1, *maps.shape[-2:])
    found = processor.post_process_anomaly_detection(flat, target_sizes=sizes * len(scores["logits"]), sigma=sigma)
    return scores, [one["anomaly_map"] for one in found]


def _add_tiles(
    forward: Callable,
    processor: Any,
    tiles: ImageTiles,
    best: Mapping[str, Tensor],
    maps: Tensor,
    sigma: float | None,
) -> dict[str, Tensor]:
    """Blend the maps of tiles into those of the whole view `(K, H, W)`, in place; returns the highest scores."""
    x0, y0, x1, y1 = tiles.boxes[0]
    width, height = x1 - x0, y1 - y0
    across = blend_weights((box[0] for box in tiles.boxes), width, maps.shape[-1])
    down = blend_weights((box[1] for box in tiles.boxes), height, maps.shape[-2])
    maps *= WHOLE_SHARE
    for first in range(0, len(tiles.boxes), TILES_PER_FORWARD):
        boxes = tiles.boxes[first : first + TILES_PER_FORWARD]
        crops = [tiles.image.crop(box) for box in boxes]
        pixel_values = processor(crops, return_tensors="pt", **tiles.settings)["pixel_values"].to(maps.device)
        scores, found = _score(forward, processor, pixel_values, [(height, width)] * len(boxes), sigma)
        candidates = {key: torch.cat([best[key][:, None], value], dim=1) for key, value in scores.items()}
        if "reference_scores" in candidates:
            highest = candidates["reference_scores"].argmax(dim=1)
        else:  # not of the softmax, which is 1.0 for all that are large
            highest = (candidates["logits"][..., 1] - candidates["logits"][..., 0]).argmax(dim=1)
        best = {
            key: value[torch.arange(len(value), device=value.device), highest] for key, value in candidates.items()
        }
        for number, anomaly_map in enumerate(found):
            x, y = boxes[number % len(boxes)][:2]
            weights = (down[y][:, None] * across[x] * (1 - WHOLE_SHARE)).to(maps.device)
            maps[number // len(boxes), y : y + height, x : x + width] += weights * anomaly_map
    return dict(best)
