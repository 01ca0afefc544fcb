"""The drawn benchmark: what `synthetic` stands for in the commands of a checkout, in memory or written to a folder.

    python scripts/demo_model/draw.py drawings --num_images 400 --seed 2026     # classes that training never saw
    python scripts/demo_model/draw.py drawings_train --split train

A folder written here is an ordinary `datasets` repository, which every command of the package takes as a source.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from drawing.synthetic import DEFECTS, HELD_OUT_CLASSES, TRAIN_CLASSES, TRAIN_DEFECTS, draw_dataset

if TYPE_CHECKING:
    import datasets

HELD_OUT: dict[str, Any] = {"classes": HELD_OUT_CLASSES, "defects": DEFECTS}
# The drawings that the embedded default is judged on are those of "test"; thresholds are chosen on others.
SPLITS: dict[str, dict[str, Any]] = {
    "train": {"classes": TRAIN_CLASSES, "defects": TRAIN_DEFECTS, "num_images": 256},
    "validation": {**HELD_OUT, "num_images": 256},
    "test": {**HELD_OUT, "num_images": 400, "seed": 2026, "difficulty": 0.5, "size": 128},
    "calibration": {**HELD_OUT, "num_images": 400, "seed": 2027, "difficulty": 0.5, "size": 128},
}


def draw(split: str = "test", class_names: list[str] | None = None, **options: Any) -> datasets.Dataset:
    """Draw one split.

    Args:
        split (`str`): "train" has the classes and kinds of defects that are not held out, "validation", "test" and
            "calibration" those that are.
        class_names (*optional*): these classes instead.
        **options: of `draw_dataset` (num_images, size, seed, difficulty, defects), instead of the split's own.

    Raises:
        ValueError: an unknown option, or a value that `draw_dataset` refuses.
    """
    known = ("num_images", "size", "seed", "difficulty", "defects")
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"'synthetic' takes no {', '.join(unknown)}: expected {', '.join(known)} or class_names")
    if split == "calibration" and "seed" in options:  # never the drawings that are judged
        options["seed"] += 1
    settings = {**SPLITS[split], **options}
    classes = tuple(class_names or settings.pop("classes"))
    return draw_dataset(**{**settings, "classes": classes})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="known or held-out classes")
    parser.add_argument("--class_names", nargs="+", metavar="NAME", help="these classes instead")
    parser.add_argument("--num_images", type=int, help="half of them anomalous (default: 400, of train 256)")
    parser.add_argument("--size", type=int, help="side in pixels (default: 128, of train 96)")
    parser.add_argument("--seed", type=int, help="decides every picture (default: 2026, of train 0)")
    parser.add_argument("--difficulty", type=float, help="0 (clear defects) to 1 (faint ones too); default 0.5")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    options = vars(parser.parse_args())
    out, split, overwrite = (options.pop(name) for name in ("out", "split", "overwrite"))
    from anomalyclip_hf.data import export_dataset, load_anomaly_dataset

    try:
        drawn = draw(split, **{name: value for name, value in options.items() if value is not None})
        title = f"Drawings of anomalyclip_hf's scripts/demo_model ({split})"
        schema = load_anomaly_dataset(drawn, split="all")
        export_dataset({split: schema}, out, license="apache-2.0", title=title, overwrite=overwrite)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(drawn)} drawings: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
