"""What the frozen backbone makes of the images: computed once, kept in memory-mapped files, or made anew each time.

A cache is a folder named by what decides it (weights, revision, image size, layers, DPAM, processor, contents of the
images): data sets of equal names have caches of their own, and runs that need the same one wait for the first. It
holds `image_embeds.npy` (N, P), `patch_embeds.npy` (N, M, patches, P), `masks.npy` (packed bits), `rows.npy` (the
state of each image) and, once all of it is complete, `header.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.files import atomic_path
from .samples import TrainingSamples

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .arguments import PromptTrainingArguments

logger = logging.get_logger(__name__)

FORMAT = 2
HEADER = "header.json"
TODO, UNREADABLE, WITHOUT_MASK, WITH_MASK = range(4)  # states of an image
# bfloat16 is unknown to numpy and is kept as its bits.
DTYPES = {
    "float32": (np.float32, torch.float32),
    "float16": (np.float16, torch.float16),
    "bfloat16": (np.int16, torch.bfloat16),
}


class CacheError(RuntimeError):
    """A cache that can't be used as it is; the message says why."""


class PreparedImages(Dataset):
    """Images and masks as the model takes them, decoded each time they are asked for.

    Args:
        samples ([`TrainingSamples`]), processor ([`AnomalyCLIPImageProcessor`]).
        skip_unreadable (`bool`): leave out images that can't be read, and give the reason of each in `unreadable`.
    """

    def __init__(self, samples: TrainingSamples, processor: Any, skip_unreadable: bool = False):
        self.samples, self.processor, self.skip_unreadable = samples, processor, skip_unreadable

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`pixel_values` (3, H, W) and `masks` (H, W) of one image; the latter -1 where it has none.

        Raises:
            ValueError: if it can't be read; names it.
        """
        image, mask = self.samples.load(index)
        try:
            prepared = self.processor([image], masks=[mask], return_tensors="pt")
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self.samples.paths[index]} can't be used: {error}") from error
        return {name: value[0] for name, value in prepared.items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        rows, unreadable = [], {}
        for index in indices:
            try:
                rows.append(self[index])
            except ValueError as error:
                if not self.skip_unreadable:
                    raise
                unreadable[index] = str(error)
        batch: dict[str, Any] = {"unreadable": unreadable} if self.skip_unreadable else {}
        return batch | {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def iterate(source: Dataset, batches: Sequence[list[int]], num_workers: int = 0) -> Iterator[dict[str, Any]]:
    """Batches of a source by index, in order.

    Args:
        source ([`PreparedImages`] or [`FeatureCache`]).
        batches: indices of each batch; none is empty.
        num_workers (`int`): processes that decode images.
    """
    # A generator of its own, so that the workers' seeds leave the training's random numbers alone.
    generator = torch.Generator().manual_seed(0)
    return iter(
        DataLoader(source, batch_sampler=batches, num_workers=num_workers, collate_fn=_as_it_is, generator=generator)
    )


def _as_it_is(batch: Any) -> Any:
    return batch


class FeatureCache(Dataset):
    """Kept features of a data set. Make one with [`FeatureCache.build`].

    Args:
        path: its folder.

    Raises:
        CacheError: if it is incomplete or truncated.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            header = json.loads((self.path / HEADER).read_text())
        except (OSError, ValueError) as error:
            raise CacheError(f"{self.path} is incomplete ({error})") from error
        self.dtype = DTYPES[header["settings"]["dtype"]][1]
        self.mask_size: tuple[int, int] = tuple(header["mask_size"])
        self._arrays = _open_arrays(self.path)
        self._states = np.array(self._arrays["rows"])
        self.readable: np.ndarray = self._states > UNREADABLE

    def __len__(self) -> int:
        return len(self._states)

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return sum((self.path / f"{name}.npy").stat().st_size for name in self._arrays)

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Features and masks of some images, as the model takes them.

        Args:
            indices (`(B,)` int).

        Returns:
            `image_embeds` (B, P) and `patch_embeds` (B, M, patches, P) in the cache's dtype, and `masks` (B, H, W)
            float32, 0 or 1, -1 for an image without one.
        """
        indices = np.asarray(indices, dtype=np.int64)
        height, width = self.mask_size
        masks = np.unpackbits(self._arrays["masks"][indices], axis=1, count=height * width).astype(np.float32)
        masks[self._states[indices] != WITH_MASK] = -1
        features = {name: torch.from_numpy(self._arrays[name][indices]) for name in ("image_embeds", "patch_embeds")}
        if self.dtype == torch.bfloat16:
            features = {name: value.view(torch.bfloat16) for name, value in features.items()}
        return {**features, "masks": torch.from_numpy(masks.reshape(-1, height, width))}

    __getitems__ = read

    @classmethod
    def build(
        cls,
        model: Any,
        processor: Any,
        samples: TrainingSamples,
        args: PromptTrainingArguments,
        accelerator: Accelerator,
    ) -> FeatureCache:
        """Open the cache of these samples, or go on building it, or build it anew if it is damaged.

        Args:
            model ([`AnomalyCLIPModel`]), processor ([`AnomalyCLIPImageProcessor`]), samples ([`TrainingSamples`]).
            args ([`PromptTrainingArguments`]): its `cache_*` fields, `encode_batch_size`, `num_workers` and
                `disable_tqdm`; all processes must see `cache_dir`.
            accelerator (`Accelerator`): its processes share the work.

        Raises:
            ValueError: if the limit or the free space is too small, no image can be read, or features aren't finite.
        """
        settings = _describe_features(model, processor, args.cache_dtype, str(accelerator.mixed_precision))
        content = json.dumps([settings, samples.fingerprint()], sort_keys=True)
        path = Path(args.cache_dir or default_cache_dir()) / hashlib.sha256(content.encode()).hexdigest()[:32]
        main = accelerator.is_main_process
        with _only_builder(path) if main else contextlib.nullcontext():
            if main:
                _prepare_folder(path, _layout(model, processor, len(samples), args.cache_dtype), args.cache_limit_gb)
            accelerator.wait_for_everyone()
            if not (path / HEADER).exists():
                images = PreparedImages(samples, processor, skip_unreadable=True)
                _fill(path, model, images, args, accelerator)
                accelerator.wait_for_everyone()
                if main:
                    size = [processor.size["height"], processor.size["width"]]
                    with atomic_path(path / HEADER) as temporary:
                        temporary.write_text(json.dumps({"settings": settings, "mask_size": size}, indent=1))
                accelerator.wait_for_everyone()
            cache = cls(path)
        unreadable = [samples.paths[index] for index in np.flatnonzero(~cache.readable)]
        if len(unreadable) == len(samples):
            raise ValueError(f"{samples.name}: none of {len(samples)} images can be read, such as {unreadable[0]}")
        if unreadable and main:
            names = ", ".join(unreadable[:5]) + (" ..." if len(unreadable) > 5 else "")
            logger.warning(
                f"{samples.name}: {len(unreadable)} of {len(samples)} images could not be read and are left out: "
                f"{names}"
            )
        return cache


def default_cache_dir() -> Path:
    """Where features are kept: `$HF_HOME/anomalyclip_hf/features`."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "anomalyclip_hf" / "features"


def fingerprint_backbone(model, parts: str | tuple[str, ...] = ("vision_model.", "visual_projection.")) -> str:
    """Digest of the frozen weights whose names start so; as a rule those that image features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(parts) and not name.startswith("prompt_learner."):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_processor(processor) -> dict[str, Any]:
    """What decides the model's input, as JSON knows it; smoothing comes after the model."""
    described = processor.to_dict()
    for key in ("sigma", "auto_map", "image_processor_type", "processor_class", "_processor_class"):
        described.pop(key, None)
    return json.loads(json.dumps(described, default=str, sort_keys=True))


def _describe_features(model, processor, dtype: str, mixed_precision: str) -> dict[str, Any]:
    """All settings that decide the features of an image."""
    names = ("base_model_name_or_path", "base_model_revision", "feature_layers", "dpam_layers", "dpam_attention")
    settings = {name: getattr(model.config, name) for name in names}
    settings |= {"format": FORMAT, "dtype": dtype, "mixed_precision": mixed_precision}
    return settings | {"backbone": fingerprint_backbone(model), "processor": describe_processor(processor)}


def _layout(model, processor, count: int, dtype: str) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Kind and shape of each array of a cache."""
    height, width, patch = processor.size["height"], processor.size["width"], model.config.vision_config.patch_size
    patches, embeds = (height // patch) * (width // patch), model.config.projection_dim
    return {
        "image_embeds": (DTYPES[dtype][0], (count, embeds)),
        "patch_embeds": (DTYPES[dtype][0], (count, len(model.config.feature_layers), patches, embeds)),
        "masks": (np.uint8, (count, -(-height * width // 8))),
        "rows": (np.uint8, (count,)),
    }


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


def _open_arrays(path: Path) -> dict[str, np.ndarray]:
    names = ("image_embeds", "patch_embeds", "masks", "rows")
    try:
        return {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} is damaged ({error})") from error


def _prepare_folder(path: Path, layout: dict[str, tuple[type, tuple[int, ...]]], limit_gb: float | None) -> None:
    """Keep what is there if it is whole, and make room for the rest."""
    size = sum(np.dtype(kind).itemsize * int(np.prod(shape, dtype=np.int64)) for kind, shape in layout.values())
    if path.exists():
        try:
            _open_arrays(path)
            if (path / HEADER).exists():
                FeatureCache(path)
            logger.info(f"using kept features in {path} ({size / 1e9:.2f} GB)")
            return
        except CacheError as error:
            logger.warning(f"rebuilding kept features: {error}")
            shutil.rmtree(path)
    free = shutil.disk_usage(path.parent).free
    way_out = "raise cache_limit_gb, choose cache_dtype=float16, another cache_dir, or no_cache=True"
    if limit_gb is not None and size > limit_gb * 1e9:
        raise ValueError(f"features would take {size / 1e9:.3g} GB, more than cache_limit_gb={limit_gb}; {way_out}")
    if size > free:
        raise ValueError(f"features would take {size / 1e9:.3g} GB but {path.parent} has {free / 1e9:.3g}; {way_out}")
    logger.warning(f"keeping features of {layout['rows'][1][0]} images: {size / 1e9:.2f} GB in {path}")
    path.mkdir()
    for name, (kind, shape) in layout.items():
        np.lib.format.open_memmap(path / f"{name}.npy", mode="w+", dtype=kind, shape=shape)


def _fill(
    path: Path, model: Any, images: PreparedImages, args: PromptTrainingArguments, accelerator: Accelerator
) -> None:
    """Encode what is still to do; each process takes every n-th batch."""
    samples, size, kind = images.samples, args.encode_batch_size, DTYPES[args.cache_dtype][1]
    todo = np.flatnonzero(_open_arrays(path)["rows"] == TODO)
    # Batches are the same however often the work was cut off, and so are the features, to the last bit.
    starts = (np.unique(todo // size) * size)[accelerator.process_index :: accelerator.num_processes]
    batches = [list(range(start, min(start + size, len(samples)))) for start in starts.tolist()]
    hidden = args.disable_tqdm or not accelerator.is_main_process
    bar = tqdm(total=sum(map(len, batches)), desc="features", unit="image", disable=hidden)
    encode = model.encode_images
    for indices, batch in zip(batches, iterate(images, batches, args.num_workers), strict=True):
        for reason in batch["unreadable"].values():
            logger.warning(f"left out: {reason}")
        readable = np.array([index not in batch["unreadable"] for index in indices])
        if readable.any():
            with accelerator.autocast():
                features = encode(batch["pixel_values"].to(model.device))
            _check_finite(features, [samples.paths[index] for index in np.array(indices)[readable]])
            masks = np.packbits(batch["masks"].flatten(1).numpy() > 0.5, axis=1)
            stored = [part.to(kind).cpu().view(torch.uint8).flatten(1).numpy() for part in features]
            for name, rows in zip(("image_embeds", "patch_embeds", "masks"), (*stored, masks), strict=True):
                _write_rows(path / f"{name}.npy", np.array(indices)[readable], rows)
        states = np.where(readable, np.where(samples.has_mask[indices], WITH_MASK, WITHOUT_MASK), UNREADABLE)
        _write_rows(path / "rows.npy", np.array(indices), states.astype(np.uint8)[:, None])
        bar.update(len(indices))
    bar.close()


def _check_finite(features: Sequence[Tensor], paths: list[str]) -> None:
    finite = torch.stack([torch.isfinite(part.flatten(1)).all(dim=1) for part in features]).all(dim=0)
    if not finite.all():
        names = ", ".join(path for path, good in zip(paths, finite, strict=True) if not good)
        raise ValueError(f"the features of {names} are not finite; try another dtype or mixed_precision")


def _write_rows(path: Path, indices: np.ndarray, rows: np.ndarray) -> None:
    """Put rows, as bytes, into a `.npy` file, and wait until they have reached the disk."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    # Plain writes, not a memory map: a full disk is then an error and not a crash.
    with open(path, "r+b") as file:
        for index, row in zip(indices.tolist(), rows, strict=True):
            file.seek(array.offset + index * array.strides[0])
            file.write(row.tobytes())
        file.flush()
        os.fsync(file.fileno())
