"""What the frozen backbone makes of the images: computed once and kept, or made anew each time.

A file named by all that decides the features (weights, layers, DPAM, processor, contents of the images) holds a record
of each image. It gets its name when it is whole; runs that need the same one wait for the one that makes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.logging import get_logger
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from tqdm.auto import tqdm

from ..data.files import count_of
from ..scoring.engine import own_share, score_images
from .samples import TrainingSamples, shorten

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor
    from ..modeling_anomalyclip import AnomalyCLIPModel
    from .arguments import PromptTrainingArguments

logger = get_logger(__name__)  # which speaks in the main process

FORMAT = 4
UNREADABLE, WITHOUT_MASK, WITH_MASK = range(3)  # states of an image


class CacheError(RuntimeError):
    """Kept features that can't be used as they are; the message says why."""


def prepare_image(pair: tuple[Any, Any], processor: AnomalyCLIPImageProcessor) -> dict[str, Tensor]:
    """`pixel_values` (3, H, W) and `masks` (H, W), -1 where there is none, of an image and its mask."""
    image, mask = pair
    return {name: value[0] for name, value in processor([image], masks=[mask], return_tensors="pt").items()}


class UncachedImages:
    """Images and masks as the model takes them, in place of a [`FeatureCache`]: decoded in each epoch."""

    def __init__(self, samples: TrainingSamples, processor: AnomalyCLIPImageProcessor, num_workers: int = 0):
        self.samples, self.processor, self.num_workers = samples, processor, num_workers
        self.readable = np.ones(len(samples), dtype=bool)  # until one is not

    def iterate(self, batches: Sequence[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """`pixel_values` (B, 3, H, W) and `masks` (B, H, W) of each batch of indices.

        Raises:
            ValueError: if an image can't be read; names it.
        """
        indices = [int(index) for batch in batches for index in batch]
        prepare = partial(prepare_image, processor=self.processor)
        records = score_images(self.samples, prepare, list, num_workers=self.num_workers, indices=indices)
        for batch in batches:
            found = list(islice(records, len(batch)))
            for record in found:
                if record.error:
                    raise ValueError(f"{self.samples.paths[record.index]} can't be used: {record.error}")
            yield {name: torch.stack([record.item[name] for record in found]) for name in found[0].item}


class FeatureCache:
    """Kept features of a data set, in the file `path`. Make one with [`FeatureCache.build`].

    Raises:
        CacheError: if it is truncated.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._records: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(f"{self.path} is damaged ({error})") from error
        self._states = np.array(self._records["state"])
        self.readable: np.ndarray = self._states > UNREADABLE

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """`image_embeds` (B, P) and `patch_embeds` (B, M, patches, P) as kept, and `masks` (B, H, W) float32, 0 or 1,
        -1 for an image without one, of `indices` (B,)."""
        indices = np.asarray(indices, dtype=np.int64)
        found = {name: self._records[name][indices] for name in ("image_embeds", "patch_embeds", "masks")}
        side = found["masks"].shape[1]
        found["masks"] = np.unpackbits(found["masks"], axis=2, count=side).astype(np.float32)
        found["masks"][self._states[indices] != WITH_MASK] = -1
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}

    def iterate(self, batches: Sequence[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """What [`FeatureCache.read`] returns, of each batch of indices."""
        return map(self.read, batches)

    @classmethod
    def build(
        cls,
        model: AnomalyCLIPModel,
        processor: AnomalyCLIPImageProcessor,
        samples: TrainingSamples,
        args: PromptTrainingArguments,
        accelerator: Accelerator,
    ) -> FeatureCache:
        """Open the features of these samples, or make them where there are none or they are damaged.

        Args:
            model, processor, samples.
            args ([`PromptTrainingArguments`]): its `cache_*` fields, `encode_batch_size`, `num_workers` and
                `disable_tqdm`; all processes must see `cache_dir`.
            accelerator (`Accelerator`): its processes share the work.

        Raises:
            ValueError: if they would exceed the limit, no image can be read, or features aren't finite.
        """
        names = ("base_model_name_or_path", "base_model_revision", "feature_layers", "dpam_layers", "dpam_attention")
        settings = {name: getattr(model.config, name) for name in names}
        settings |= {"backbone": fingerprint_backbone(model), "processor": describe_processor(processor)}
        settings |= {"dtype": args.cache_dtype, "mixed_precision": str(accelerator.mixed_precision)}
        content = json.dumps([FORMAT, settings, samples.fingerprint()], sort_keys=True)
        folder = Path(args.cache_dir or f"{HF_HOME}/anomalyclip_hf/features")
        path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.npy"
        with _only_builder(path) if accelerator.is_main_process else contextlib.nullcontext():
            accelerator.wait_for_everyone()  # until the main process alone looks after the file
            try:
                cache = cls(path)
            except CacheError as error:
                if path.exists():
                    logger.warning(f"rebuilding kept features: {error}")
                _make(path, model, processor, samples, args, accelerator)
                cache = cls(path)
        unreadable = [samples.paths[index] for index in np.flatnonzero(~cache.readable)]
        count = f"{samples.name}: {len(unreadable)} of {len(samples)} images could not be read"
        if len(unreadable) == len(samples):
            raise ValueError(f"{count}, such as {unreadable[0]}")
        if unreadable:
            logger.warning(f"{count} and are left out: {shorten(unreadable)}")
        return cache


def fingerprint_backbone(
    model: AnomalyCLIPModel, parts: str | tuple[str, ...] = ("vision_model.", "visual_projection.")
) -> str:
    """Digest of the frozen weights whose names start so; as a rule those that image features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(parts) and not name.startswith("prompt_learner."):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_processor(processor: AnomalyCLIPImageProcessor) -> dict[str, Any]:
    """What decides the model's input, as JSON knows it; smoothing comes after the model."""
    left_out = ("sigma", "auto_map", "image_processor_type", "processor_class", "_processor_class")
    described = {name: value for name, value in processor.to_dict().items() if name not in left_out}
    return json.loads(json.dumps(described, default=str, sort_keys=True))


@contextlib.contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    """Wait for other runs that make the same features; a lock of a killed run is free. Leaves nothing unfinished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        logger.warning(f"another run makes the same features in {path}: waiting for it")
        held = lock.acquire()
    with held:
        try:
            yield
        finally:
            path.with_suffix(".unfinished").unlink(missing_ok=True)


def _make(
    path: Path,
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPImageProcessor,
    samples: TrainingSamples,
    args: PromptTrainingArguments,
    accelerator: Accelerator,
) -> None:
    """Encode the images into a file that is renamed when it is whole; the processes share the batches."""
    unfinished, config, side = path.with_suffix(".unfinished"), model.config, model.config.image_size
    patches = (len(config.feature_layers), (side // config.vision_config.patch_size) ** 2, config.projection_dim)
    embeds = [("image_embeds", args.cache_dtype, patches[-1:]), ("patch_embeds", args.cache_dtype, patches)]
    kind = np.dtype([("state", np.uint8), *embeds, ("masks", np.uint8, (side, -(-side // 8)))])  # the mask as bits
    if accelerator.is_main_process:
        unfinished.unlink(missing_ok=True)  # of a run that was killed
        _make_room(unfinished, kind, len(samples), args.cache_limit_gb)
    accelerator.wait_for_everyone()

    def encode(items: list[dict[str, Tensor]]) -> list[tuple[np.ndarray, np.ndarray]]:
        with accelerator.autocast():
            features = model.encode_images(torch.stack([item["pixel_values"] for item in items]).to(model.device))
        return list(zip(*(part.float().cpu().numpy() for part in features), strict=True))

    size, offset = args.encode_batch_size, np.load(unfinished, mmap_mode="r", allow_pickle=False).offset
    own = own_share(range(len(samples)), size, accelerator.process_index, accelerator.num_processes)
    prepare = partial(prepare_image, processor=processor)
    scored = score_images(samples, prepare, encode, batch_size=size, num_workers=args.num_workers, indices=own)
    hidden = args.disable_tqdm or not accelerator.is_main_process
    scored = iter(tqdm(scored, total=len(own), desc="features", unit="image", disable=hidden))
    # Plain writes, not a memory map: a full disk is then an error and not a crash.
    with open(unfinished, "r+b") as file:
        while batch := list(islice(scored, size)):
            made = np.zeros(len(batch), dtype=kind)
            for row, record in enumerate(batch):
                name = samples.paths[record.index]
                if record.item is None:
                    logger.warning(f"{name} is left out: {record.error}", main_process_only=False)
                    continue
                if record.result is None:
                    raise RuntimeError(f"the features of {name} can't be made: {record.error}")
                if not all(np.isfinite(part).all() for part in record.result):
                    raise ValueError(f"the features of {name} are not finite; try another dtype or mixed_precision")
                state = WITH_MASK if samples.has_mask[record.index] else WITHOUT_MASK
                made[row] = (state, *record.result, np.packbits(record.item["masks"].numpy() > 0.5, axis=1))
            file.seek(offset + batch[0].index * made.itemsize)
            file.write(made.tobytes())
        file.flush()
        os.fsync(file.fileno())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(unfinished, path)
    accelerator.wait_for_everyone()


def _make_room(path: Path, record: np.dtype, count: int, limit_gb: float | None) -> None:
    """An empty record of each image, where the disk and the user allow so many."""
    size, free, limit = count * record.itemsize, shutil.disk_usage(path.parent).free, (limit_gb or np.inf) * 1e9
    if size > min(free, limit):
        bound = f"{path.parent} has {free / 1e9:.3g}" if free < limit else f"cache_limit_gb={limit_gb}"
        raise ValueError(
            f"features would take {size / 1e9:.3g} GB but {bound}; raise cache_limit_gb, choose cache_dtype=float16, "
            "another cache_dir, or no_cache=True"
        )
    logger.warning(f"keeping features of {count_of(count, 'image')}: {size / 1e9:.2f} GB in {path.parent}")
    np.lib.format.open_memmap(path, mode="w+", dtype=record, shape=(count,))
