"""What tests of evaluation share: a small data set on disk."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_tree(root: Path, classes=("bottle", "grid"), good=3, bad=4, size=(50, 40), seed=0, mask_missing=()) -> Path:
    """An MVTec-style tree with random pictures; `mask_missing` lists numbers of bad images without a mask."""
    generator = np.random.default_rng(seed)
    for class_name in classes:
        for kind, count in (("good", good), ("scratch", bad)):
            folder = root / class_name / "test" / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.asarray(
                    Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, 3)
                ).copy()
                if kind == "scratch":
                    row, column = generator.integers(2, 15, 2)
                    pixels[row : row + 15, column : column + 20] = generator.integers(0, 256, 3)
                    mask = np.zeros((size[1], size[0]), np.uint8)
                    mask[row : row + 15, column : column + 20] = 255
                    if number not in mask_missing:
                        truth = root / class_name / "ground_truth" / kind
                        truth.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(mask).save(truth / f"{number:03d}_mask.png")
                Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root
