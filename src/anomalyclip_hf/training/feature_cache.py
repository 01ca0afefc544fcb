"""Features of the frozen backbone, computed once per image and kept in memory-mapped files.

A cache is a folder named by what decides it (weights, revision, image size, layers, DPAM, processor, contents of the
images): data sets of equal names have caches of their own, and runs that need the same one wait for the first.
`image_embeds.bin` (N, P), `patch_embeds.bin` (N, M, patches, P), `masks.bin` (packed bits of images that have a mask),
`rows.bin` (one byte per image: to do, done, unreadable) and `header.json`, which says whether all of it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from ..evaluation.files import atomic_path
from .batches import EncodedBatches, iterate_batches
from .checkpoint import PROMPTS
from .samples import TrainingSamples

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)

FORMAT = 1
TODO, DONE, UNREADABLE = 0, 1, 2
SYNC_SECONDS = 10.0
# bfloat16 is unknown to numpy and is kept as its bits.
DTYPES = {
    "float32": (np.float32, torch.float32),
    "float16": (np.float16, torch.float16),
    "bfloat16": (np.int16, torch.bfloat16),
}


class CacheError(RuntimeError):
    """A cache that can't be used as it is; the message says why."""


def default_cache_dir() -> Path:
    """Where features are kept: `$HF_HOME/anomalyclip_hf/features`."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "anomalyclip_hf" / "features"


def fingerprint_backbone(model, parts: str | tuple[str, ...] = ("vision_model.", "visual_projection.")) -> str:
    """Digest of the frozen weights whose names start so; as a rule those that image features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(parts) and not name.startswith(PROMPTS):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_features(model, processor, dtype: str, mixed_precision: str = "no") -> dict[str, Any]:
    """All settings that decide the features of an image."""
    config = model.config
    return {
        "format": FORMAT,
        "dtype": dtype,
        "mixed_precision": mixed_precision,
        "backbone": fingerprint_backbone(model),
        "base_model_name_or_path": config.base_model_name_or_path,
        "base_model_revision": config.base_model_revision,
        "feature_layers": list(config.feature_layers),
        "dpam_layers": config.dpam_layers,
        "dpam_attention": config.dpam_attention,
        "processor": describe_processor(processor),
    }


def describe_processor(processor) -> dict[str, Any]:
    """What decides the model's input, as JSON knows it; smoothing comes after the model."""
    described = processor.to_dict()
    for key in ("sigma", "auto_map", "image_processor_type", "processor_class", "_processor_class"):
        described.pop(key, None)
    return json.loads(json.dumps(described, default=str, sort_keys=True))


class FeatureCache:
    """Kept features of a data set. Make one with [`FeatureCache.build`].

    Args:
        path: its folder.

    Raises:
        CacheError: if it is incomplete, truncated or of another format.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.header = _read_header(self.path)
        if not self.header["complete"]:
            raise CacheError(f"{self.path} is incomplete")
        _check_sizes(self.path, self.header)
        shapes = self.header["shapes"]
        stored, self.dtype = DTYPES[self.header["settings"]["dtype"]]
        self._image = np.memmap(self.path / "image_embeds.bin", stored, "r", shape=tuple(shapes["image_embeds"]))
        self._patch = np.memmap(self.path / "patch_embeds.bin", stored, "r", shape=tuple(shapes["patch_embeds"]))
        self.mask_size: tuple[int, int] = tuple(self.header["mask_size"])
        count, width = shapes["masks"]
        self._masks = np.memmap(self.path / "masks.bin", np.uint8, "r", shape=(count, width)) if count else None
        self._mask_rows = np.asarray(self.header["mask_rows"], dtype=np.int64)
        self.readable: np.ndarray = np.fromfile(self.path / "rows.bin", np.uint8) == DONE

    def __len__(self) -> int:
        return len(self._image)

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return sum(_file_sizes(self.header).values())

    def read(self, indices: Sequence[int] | np.ndarray, with_masks: bool = True) -> dict[str, Tensor]:
        """Features and masks of some images, as the model takes them.

        Args:
            indices (`(B,)` int).
            with_masks (`bool`): also answer masks.

        Returns:
            `image_embeds` (B, P) and `patch_embeds` (B, M, patches, P) in the cache's dtype, and `masks` (B, H, W)
            float32, 0 or 1, -1 for an image without one.
        """
        indices = np.asarray(indices, dtype=np.int64)
        batch = {
            "image_embeds": self._tensor(self._image[indices]),
            "patch_embeds": self._tensor(self._patch[indices]),
        }
        if with_masks:
            batch["masks"] = self.read_masks(indices)
        return batch

    def read_masks(self, indices: np.ndarray) -> Tensor:
        """Masks alone, `(B, H, W)` as in `read`."""
        height, width = self.mask_size
        masks = np.full((len(indices), height, width), -1, dtype=np.float32)
        for row, place in enumerate(self._mask_rows[indices]):
            if place >= 0 and self._masks is not None:
                masks[row] = np.unpackbits(self._masks[place], count=height * width).reshape(height, width)
        return torch.from_numpy(masks)

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.asarray(array))
        return tensor.view(torch.bfloat16) if self.dtype == torch.bfloat16 else tensor

    @classmethod
    def build(
        cls,
        model,
        processor,
        samples: TrainingSamples,
        *,
        cache_dir: str | os.PathLike | None = None,
        dtype: str = "float16",
        batch_size: int = 8,
        limit_gb: float | None = None,
        num_workers: int = 0,
        accelerator: Accelerator | None = None,
        show_progress: bool = True,
    ) -> FeatureCache:
        """Open the cache of these samples, or go on building it, or build it anew if it is damaged.

        Args:
            model ([`AnomalyCLIPModel`]), processor ([`AnomalyCLIPProcessor`]).
            samples ([`TrainingSamples`]).
            cache_dir (path, *optional*): folder of caches; all processes must see it. `default_cache_dir()` if absent.
            dtype (`str`): "float32", "float16" or "bfloat16".
            batch_size (`int`): images per forward.
            limit_gb (`float`, gigabytes, *optional*): refuse to write more.
            num_workers (`int`): processes that decode images.
            accelerator (`Accelerator`, *optional*): its processes share the work.
            show_progress (`bool`).

        Raises:
            ValueError: if the limit or the free space is too small, or no image can be read.
        """
        from accelerate import Accelerator

        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}, expected one of {sorted(DTYPES)}")
        accelerator = accelerator or Accelerator()
        settings = describe_features(model, processor, dtype, str(accelerator.mixed_precision))
        header = _make_header(model, processor, samples, settings)
        name = hashlib.sha256((json.dumps(settings, sort_keys=True) + header["data"]).encode()).hexdigest()
        path = Path(cache_dir or default_cache_dir()) / name[:32]
        with _only_builder(path) if accelerator.is_main_process else contextlib.nullcontext():
            if accelerator.is_main_process:
                _prepare_folder(path, header, limit_gb)
            accelerator.wait_for_everyone()
            if not _read_header(path)["complete"]:
                _fill(path, header, model, processor, samples, accelerator, batch_size, num_workers, show_progress)
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    _write_header(path, {**header, "complete": True})
                accelerator.wait_for_everyone()
            return cls(path)._checked(samples)

    def _checked(self, samples: TrainingSamples) -> FeatureCache:
        unreadable = np.flatnonzero(~self.readable)
        if len(unreadable) == len(self):
            raise ValueError(f"{samples.name}: none of {len(self)} images can be read, such as {samples.paths[0]}")
        if len(unreadable):
            names = ", ".join(samples.paths[i] for i in unreadable[:5]) + (" ..." if len(unreadable) > 5 else "")
            logger.warning(
                f"{samples.name}: {len(unreadable)} of {len(self)} images could not be read and are left out: {names}"
            )
        return self


@contextlib.contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    """Wait for other runs that make the same features; a lock of a killed run is free."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning(f"another run makes the same features in {path}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_header(model, processor, samples: TrainingSamples, settings: dict) -> dict[str, Any]:
    height, width = processor.size["height"], processor.size["width"]
    patch = model.config.vision_config.patch_size
    patches, count = (height // patch) * (width // patch), len(samples)
    rows = np.where(samples.has_mask, np.cumsum(samples.has_mask) - 1, -1)
    return {
        "complete": False,
        "settings": settings,
        "data": samples.fingerprint(),
        "mask_size": [height, width],
        "mask_rows": rows.tolist(),
        "shapes": {
            "image_embeds": [count, model.config.projection_dim],
            "patch_embeds": [count, len(model.config.feature_layers), patches, model.config.projection_dim],
            "masks": [int(samples.has_mask.sum()), -(-height * width // 8)],
        },
    }


def _file_sizes(header: dict) -> dict[str, int]:
    item = np.dtype(DTYPES[header["settings"]["dtype"]][0]).itemsize
    sizes = {f"{name}.bin": int(np.prod(shape, dtype=np.int64)) for name, shape in header["shapes"].items()}
    sizes["image_embeds.bin"] *= item
    sizes["patch_embeds.bin"] *= item
    return {**sizes, "rows.bin": header["shapes"]["image_embeds"][0]}


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "header.json").read_text())
        checksum = header.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CacheError(f"{path} has no usable header.json ({error})") from error
    if checksum != _checksum(header):
        raise CacheError(f"{path}/header.json does not match its checksum")
    return header


def _write_header(path: Path, header: dict) -> None:
    with atomic_path(path / "header.json") as temporary:
        temporary.write_text(json.dumps({**header, "checksum": _checksum(header)}))


def _checksum(header: dict) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _check_sizes(path: Path, header: dict) -> None:
    for name, size in _file_sizes(header).items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            raise CacheError(f"{path / name} has {found} bytes, expected {size}")


def _prepare_folder(path: Path, header: dict, limit_gb: float | None) -> None:
    """Keep what fits, discard what does not, and make room for the rest."""
    if path.exists():
        try:
            found = _read_header(path)
            _check_sizes(path, found)
            if {**found, "complete": False} != header:
                raise CacheError(f"{path} is of other images than its name says")
            state = "using kept features" if found["complete"] else "going on with half-built features"
            logger.info(f"{state} in {path} ({_gigabytes(header):.2f} GB)")
            return
        except CacheError as error:
            logger.warning(f"rebuilding kept features: {error}")
            shutil.rmtree(path)
    size = sum(_file_sizes(header).values())
    _check_space(path, header, size, limit_gb)
    logger.warning(
        f"keeping features of {header['shapes']['image_embeds'][0]} images: {_gigabytes(header):.2f} GB in {path}"
    )
    path.mkdir(parents=True)
    for name, length in _file_sizes(header).items():
        with open(path / name, "wb") as file:
            file.truncate(length)
    _write_header(path, header)


def _check_space(path: Path, header: dict, size: int, limit_gb: float | None) -> None:
    way_out = "raise cache_limit_gb, choose cache_dtype=float16, another cache_dir, or no_cache=True"
    if limit_gb is not None and size > limit_gb * 1e9:
        raise ValueError(
            f"features would take {_gigabytes(header):.3g} GB, more than cache_limit_gb={limit_gb}; {way_out}"
        )
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if size > free:
        raise ValueError(
            f"features would take {_gigabytes(header):.3g} GB but {parent} has {free / 1e9:.3g}; {way_out}"
        )


def _gigabytes(header: dict) -> float:
    return sum(_file_sizes(header).values()) / 1e9


def _fill(path, header, model, processor, samples, accelerator, batch_size, num_workers, show_progress) -> None:
    """Encode what is still to do; each process takes every n-th image."""
    rank, world = accelerator.process_index, accelerator.num_processes
    status = np.fromfile(path / "rows.bin", np.uint8)
    todo = np.flatnonzero(status == TODO)
    # Batches are the same however often the work was cut off, and so are the features, to the last bit.
    starts = np.unique(todo // batch_size) * batch_size
    parts = [np.arange(start, min(start + batch_size, len(status))) for start in starts[rank::world]]
    with (
        _RowWriter(path, header) as writer,
        tqdm(
            total=sum(map(len, parts)),
            desc="features",
            unit="image",
            disable=not (show_progress and accelerator.is_main_process),
        ) as bar,
    ):
        for part, batch in zip(
            parts, iterate_batches(EncodedBatches(samples, processor), parts, num_workers), strict=True
        ):
            if batch["indices"]:
                with accelerator.autocast():
                    image, patch = model.encode_images(batch["pixel_values"].to(model.device))
                _check_finite(samples, batch["indices"], image, patch)
                writer.write(batch["indices"], image, patch, batch["masks"])
            for index, reason in batch["unreadable"]:
                logger.warning(f"left out: {samples.paths[index]}: {reason}")
            writer.mark([index for index, _ in batch["unreadable"]], UNREADABLE)
            bar.update(len(part))


def _check_finite(samples: TrainingSamples, indices: list[int], image: Tensor, patch: Tensor) -> None:
    good = torch.isfinite(image).all(dim=1) & torch.isfinite(patch.flatten(1)).all(dim=1)
    if not good.all():
        names = ", ".join(samples.paths[indices[row]] for row in torch.nonzero(~good).flatten().tolist())
        raise ValueError(f"the features of {names} are not finite; try another dtype or mixed_precision")


class _RowWriter:
    """Writes rows in place; a row counts as done only after its data has reached the disk."""

    def __init__(self, path: Path, header: dict):
        self.header, self.stored = header, DTYPES[header["settings"]["dtype"]][1]
        # Plain writes, not a memory map: a full disk is then an error and not a crash.
        self.files = {name: os.open(path / name, os.O_RDWR) for name in _file_sizes(header)}
        self.pending: list[tuple[int, int]] = []
        self.last = time.monotonic()

    def __enter__(self) -> _RowWriter:
        return self

    def __exit__(self, *error) -> None:
        self.flush()
        for handle in self.files.values():
            os.close(handle)

    def write(self, indices: list[int], image: Tensor, patch: Tensor, masks: list[np.ndarray | None]) -> None:
        image, patch = image.to(self.stored).cpu().contiguous(), patch.to(self.stored).cpu().contiguous()
        for row, index in enumerate(indices):
            self._put("image_embeds.bin", index, image[row].view(torch.uint8).numpy())
            self._put("patch_embeds.bin", index, patch[row].view(torch.uint8).numpy())
            mask = masks[row]
            if mask is not None:
                self._put("masks.bin", self.header["mask_rows"][index], mask)
        self.mark(indices, DONE)

    def _put(self, name: str, row: int, data: np.ndarray) -> None:
        view = np.ascontiguousarray(data).data.cast("B")
        start, written = row * len(view), 0
        while written < len(view):
            written += os.pwrite(self.files[name], view[written:], start + written)

    def mark(self, indices: list[int], status: int) -> None:
        self.pending += [(index, status) for index in indices]
        if time.monotonic() - self.last > SYNC_SECONDS:
            self.flush()

    def flush(self) -> None:
        for name in ("image_embeds.bin", "patch_embeds.bin", "masks.bin"):
            os.fsync(self.files[name])
        for index, status in self.pending:
            os.pwrite(self.files["rows.bin"], bytes([status]), index)
        self.pending, self.last = [], time.monotonic()
