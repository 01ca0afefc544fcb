"""A small data set of files on disk, and a run with everything kept below the test's own folder."""

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging

logging.get_logger()  # whose handler must not be made in a test, with a stream that ends with it


def draw_files(folder, count=10, size=48, seed=0, class_name="plate"):
    """PNG images with bright squares as anomalies on every second one, and their masks."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        label = index % 2
        pixels = generator.integers(90, 130, (size, size, 3)).astype(np.uint8)
        mask = np.zeros((size, size), dtype=np.uint8)
        if label:
            top, left = generator.integers(4, size - 20, 2)
            mask[top : top + 14, left : left + 14] = 255
            pixels[mask > 0] = 250
        row = {"label": label, "class_name": class_name, "path": str(folder / f"{index:03d}.png"), "mask": None}
        Image.fromarray(pixels).save(row["path"])
        if label:
            row["mask"] = str(folder / f"{index:03d}_mask.png")
            Image.fromarray(mask).save(row["mask"])
        rows.append({**row, "image": row["path"], "defect_type": "spot" if label else "good"})
    return rows


def to_dataset(rows):
    """Rows as a `datasets.Dataset` in the package's schema."""
    import datasets

    from anomalyclip_hf.data.features import make_features

    features = make_features()
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def make_rows(tmp_path):
    """Function `(name, **fields)` -> rows of files drawn in a folder of that name."""
    return lambda name, **fields: draw_files(tmp_path / name, **fields)


@pytest.fixture(name="to_dataset")
def to_dataset_fixture():
    return to_dataset


@pytest.fixture
def rows(make_rows):
    return make_rows("images")


@pytest.fixture
def dataset(rows):
    """Ten images of 48 pixels, every second one anomalous with a mask."""
    return to_dataset(rows)


@pytest.fixture
def validation_dataset(tmp_path):
    return to_dataset(draw_files(tmp_path / "validation", count=6, seed=1, class_name="nut"))


@pytest.fixture
def make_args(tmp_path):
    """Function `(**fields)` -> [`PromptTrainingArguments`] with small, quiet defaults below the test's folder."""
    from anomalyclip_hf.training import PromptTrainingArguments

    def make(**fields):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
            "cache_dtype": "float32",
            "batch_size": 4,
            "epochs": 2,
            "cpu": True,
            "disable_tqdm": True,
        }
        return PromptTrainingArguments(**{**defaults, **fields})

    return make
