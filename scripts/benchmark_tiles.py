"""What tiles are worth on small defects: drawn textures of 2,000 pixels, half of them with spots of 6 pixels.

    python scripts/benchmark_tiles.py --images 6 --tile_sizes 400

For the embedded model, or --model, it prints image and pixel metrics of the whole view alone, and for each tile size
those of the tiles alone, of the mean of both maps (what resize="tile" gives) and of their maximum.
"""

import argparse
import json
import time
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from transformers import pipeline

import anomalyclip_hf
from anomalyclip_hf.evaluation import StreamingPixelMetrics, image_metrics
from anomalyclip_hf.scoring import tiling

METRICS = ("pixel_auroc", "pixel_ap", "aupro")


def draw(seed: int, side: int = 2000, spot: int = 6, spots: int = 3) -> tuple[Image.Image, np.ndarray]:
    """A texture, fine or coarse, woven or not, with round spots, dark or bright; images of even seeds have none.

    Args:
        seed: decides the picture.
        side: of the image in pixels.
        spot: diameter of a spot in pixels.
        spots: how many of them.

    Returns:
        RGB image, and mask `(side, side)` bool.
    """
    rng = np.random.default_rng(seed // 2)  # a normal image and its neighbour have one texture
    noise = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), rng.uniform(0.8, 6), mode="wrap")
    y, x = np.mgrid[:side, :side].astype(np.float32)
    period = rng.uniform(8, 40)
    weave = np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period) * rng.choice([0.0, 0.05])
    gray = rng.uniform(0.35, 0.65) + 0.04 * noise / noise.std() + weave
    mask = np.zeros((side, side), bool)
    for _ in range(spots if seed % 2 else 0):
        row, column = rng.integers(spot, side - spot, 2)
        mask |= (y - row) ** 2 + (x - column) ** 2 < (spot / 2) ** 2
    gray = np.where(mask, gray + rng.choice([-0.3, 0.3]), gray)
    pixels = gray[..., None] * rng.uniform(0.8, 1.0, 3).astype(np.float32)
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)), mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=anomalyclip_hf.demo_checkpoint())
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=2000)
    parser.add_argument("--spot", type=int, default=6, help="diameter in pixels")
    parser.add_argument("--tile_sizes", nargs="+", type=int, default=[200])
    parser.add_argument("--overlap", type=float, default=0.25)
    arguments = parser.parse_args()
    detector = pipeline("zero-shot-anomaly-detection", model=arguments.model)

    scores: dict[str, list[float]] = {}
    pixels: dict[str, StreamingPixelMetrics] = {}
    seconds: dict[str, float] = {}

    def note(name: str, score: float, anomaly_map: np.ndarray, mask: np.ndarray) -> None:
        scores.setdefault(name, []).append(score)
        pixels.setdefault(name, StreamingPixelMetrics()).update([anomaly_map], [mask])

    for seed in range(arguments.images):
        image, mask = draw(seed, arguments.side, arguments.spot)
        whole = detector(image, resize="square")
        note("whole view", whole["score"], whole["anomaly_map"], mask)
        for size in arguments.tile_sizes:
            start = time.perf_counter()
            with patch.object(tiling, "WHOLE_SHARE", 0.0):
                tiled = detector(image, resize="tile", tile_size=size, overlap=arguments.overlap)
            name = f"tiles of {size}"
            seconds[name] = seconds.get(name, 0.0) + (time.perf_counter() - start) / arguments.images
            maps = (tiled["anomaly_map"], whole["anomaly_map"])
            note(name, tiled["score"], maps[0], mask)
            note(f"{name}, mean with whole", tiled["score"], sum(maps) / 2, mask)
            note(f"{name}, maximum with whole", tiled["score"], np.maximum(*maps), mask)
    labels = [seed % 2 for seed in range(arguments.images)]
    for name, metric in pixels.items():
        found = metric.compute()
        row = {"image_auroc": image_metrics(scores[name], labels)["image_auroc"]}
        row |= {key: found[key] for key in METRICS}
        row |= {"seconds_per_image": seconds[name]} if name in seconds else {}
        print(f"{name:34}", json.dumps({key: round(float(value), 4) for key, value in row.items()}), flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {detector.device}")


if __name__ == "__main__":
    main()
