"""Small picture trees for tests: each image carries a number, and the mask that belongs to it has that many pixels."""

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 16, 12
STEP = 8


def pixels_of(number, shape=(HEIGHT, WIDTH)):
    """A mask with exactly `number` pixels marked."""
    flat = np.zeros(shape[0] * shape[1], dtype=bool)
    flat[:number] = True
    return flat.reshape(shape)


def write_picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (WIDTH, HEIGHT), (number * STEP,) * 3)
    image.save(path, **({"quality": 100} if path.suffix.lower() in (".jpg", ".jpeg") else {}))


def write_mask(path, number, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(number).astype(np.uint8) * value).save(path)


def number_of(image):
    """The number an image carries."""
    return round(np.asarray(image).mean() / STEP)


def area_of(mask):
    """Marked pixels of a mask, None where there is none."""
    if mask is None:
        return None
    values = np.asarray(mask)
    assert mask.mode == "L" and set(np.unique(values)) <= {0, 255}
    return int((values == 255).sum())


def write_tree(root, images, masks=None, text=None):
    """Write {path: number} as images and masks, and {path: text} as files."""
    for path, number in images.items():
        write_picture(root / path, number)
    for path, number in (masks or {}).items():
        write_mask(root / path, number)
    for path, content in (text or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


def summary(dataset):
    """{number: (class, label, defect type, area of the mask)} of a loaded data set."""
    found = {
        number_of(row["image"]): (row["class_name"], row["label"], row["defect_type"], area_of(row["mask"]))
        for row in dataset
    }
    assert len(found) == len(dataset)
    return found
