"""Column types that decode lazily: `AnomalyImage` to RGB, `AnomalyMask` to a mask of 0 and 255.

Both are `datasets.Image`s, so that a data set keeps working with `select`, `filter`, `map`, `with_format` and
streaming, and a column without pictures (`ds["label"]`) never decodes one.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import pyarrow as pa
from datasets.features.features import register_feature
from PIL import Image

from .images import mask_files, read_image, read_mask
from .pixels import check_channels, check_window

if TYPE_CHECKING:
    from .options import SourceOptions

LABEL_NAMES = ("normal", "anomalous")


@dataclass
class AnomalyImage(datasets.Image):
    """An image column that decodes to upright 8-bit RGB, whatever mode the file has, see `read_image`."""

    window: Any = None
    channels: Any = None
    _type: str = field(default="AnomalyImage", init=False, repr=False)

    def __post_init__(self):
        self.window, self.channels = check_window(self.window), check_channels(self.channels)

    def decode_example(self, value: Any, token_per_repo_id=None) -> Image.Image:
        """Decode one cell; raises `ImageReadError` naming the file."""
        return read_image(value, self.window, self.channels)


@dataclass
class AnomalyMask(datasets.Image):
    """A mask column that decodes to mode L, 0 and 255, by the threshold of its data set, see `read_mask`.

    `turn` is kept beside the file: the orientation that lays a mask without EXIF on its rotated image (`mask_turn`).
    """

    mask_threshold: int | None = None
    pa_type: ClassVar[Any] = pa.struct({"bytes": pa.binary(), "path": pa.string(), "turn": pa.int8()})
    _type: str = field(default="AnomalyMask", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id=None) -> Image.Image:
        """Decode one cell; raises `ImageReadError` naming the file."""
        turn = value.get("turn") if isinstance(value, dict) else None
        return read_mask(value, self.mask_threshold, turn)

    def encode_example(self, value: Any) -> dict:
        """Encode a path, bytes, PIL image, array or `{"bytes", "path", "turn"}`."""
        turn = value.get("turn") if isinstance(value, dict) else None
        return {**super().encode_example(value), "turn": turn}

    def _unite(self, cell: dict) -> dict:
        if mask_files(cell) == [cell]:
            return cell
        united = read_mask(cell, self.mask_threshold, cell["turn"])
        return {**self.encode_example(united), "turn": 1}

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Take the storage of a plain `datasets.Image` too."""
        if pa.types.is_struct(storage.type) and storage.type.get_field_index("turn") >= 0:
            return _with_turn(storage, storage.field("turn"))
        return _with_turn(datasets.Image().cast_storage(storage))

    def embed_storage(self, storage: pa.Array, *args: Any, **kwargs: Any) -> pa.Array:
        """Put the files' bytes into the column, keeping `turn`; several masks of an image become one."""
        if any(path and os.path.isdir(path) for path in storage.field("path").to_pylist()):
            cells = [cell and self._unite(cell) for cell in storage.to_pylist()]
            storage = pa.array(cells, self.pa_type)
        fields = [storage.field("bytes"), storage.field("path")]
        plain = pa.StructArray.from_arrays(fields, ["bytes", "path"], mask=storage.is_null())
        embedded = datasets.Image().embed_storage(datasets.Image().cast_storage(plain), *args, **kwargs)
        return _with_turn(embedded, storage.field("turn"))


def _with_turn(storage: pa.StructArray, turn: pa.Array | None = None) -> pa.StructArray:
    turn = pa.nulls(len(storage), pa.int8()) if turn is None else turn.cast(pa.int8())
    fields = [storage.field("bytes").cast(pa.binary()), storage.field("path").cast(pa.string()), turn]
    return pa.StructArray.from_arrays(fields, ["bytes", "path", "turn"], mask=storage.is_null())


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set with its pictures left as `{"bytes", "path"}` cells, those of masks with their `turn`."""
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    return dataset.cast_column("mask", replace(dataset.features["mask"], decode=False))


def read_by(dataset: Any, options: SourceOptions) -> Any:
    """The data set with its images read by the window and the channels of the options."""
    if options.window is None and options.channels is None:
        return dataset
    return dataset.cast_column("image", AnomalyImage(window=options.window, channels=options.channels))


def make_features(mask_threshold: int | None = None) -> datasets.Features:
    """The one schema of every loaded data set.

    Args:
        mask_threshold (`int`, *optional*): how masks are binarised, see `read_mask`.
    """
    return datasets.Features(
        {
            "image": AnomalyImage(),
            "mask": AnomalyMask(mask_threshold=mask_threshold),
            "label": datasets.ClassLabel(names=list(LABEL_NAMES)),
            "class_name": datasets.Value("string"),
            "defect_type": datasets.Value("string"),
            "path": datasets.Value("string"),
        }
    )


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # "experimental": tests/data/test_features.py watches it
    register_feature(AnomalyImage, "AnomalyImage")
    register_feature(AnomalyMask, "AnomalyMask")
