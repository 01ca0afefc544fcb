"""References: a memory of a few images of good parts, which images are compared with. Nothing is trained.

Features come from the original path of the vision tower at middle layers, each patch averaged over its r x r
neighbours (AF-CLIP's way). For a patch p, M_p is the mean over layers and r of (1 - the highest cosine to a patch of
the references) / 2: 0 for a patch of a reference, 1/2 for one that is orthogonal to all of them. With the model's own
map P and a weight w, the anomaly map is (M + w P) / (1 + w), and the score (m + w P(anomalous)) / (1 + w). m is of
patches alone (r = 1) and away from the image's border, where a camera that stood a little otherwise shows what no
reference has: the mean of the highest 2 % of them.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging

from ..data.reader import images_of, load_image
from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor, with_resizing
from ..options_anomalyclip import READING, RESIZING, check_options
from ..prompts_anomalyclip import PromptsMixin, backbone_fingerprint, same_fingerprints, stored_fingerprint

logger = logging.get_logger(__name__)

NEIGHBOURHOODS = (1, 3)  # sides r, in patches: on photographs 5 made both images and pixels worse
MAX_IMAGES = 32
MAX_PATCHES = MAX_IMAGES * 37 * 37  # of as many whole images of 518 pixels
SIMILARITIES = 2**22  # held at once
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm")
KEY = "references"


@dataclass(frozen=True)
class References:
    """Features of good images.

    Args:
        features (`Tensor` of shape `(S, K, d)`, float16): unit vectors of K patches; S = layers x neighbourhoods.
        layers (`tuple[int, ...]`): layers of the vision tower, counted from 1.
        weight (`float`, 0 or more): of the model's own map and score beside the comparison.
        num_images (`int`): how many images they are of.
        fingerprint (`Tensor` of shape `(n,)`, float32, *optional*): of the backbone; None = not known.
    """

    features: Tensor
    layers: tuple[int, ...]
    weight: float = 0.1
    num_images: int = 1
    fingerprint: Tensor | None = None

    def __post_init__(self):
        check_options({"reference_weight": self.weight})

    def __repr__(self) -> str:
        return f"References(num_images={self.num_images}, layers={self.layers}, weight={self.weight})"

    def compare(self, states: Mapping[int, Tensor], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """How far the patches of images are from those of the references.

        Args:
            states (`dict`): layer to its states `(B, 1 + N, d)`, the class token first.
            grid (`tuple[int, int]`): rows and columns of the patches, N = rows x columns.

        Returns:
            distances of patches `(B, rows, columns)` and of images `(B,)`, float32, in [0, 1].
        """
        sets = describe_patches(states, self.layers, grid)
        found = [distance_to(own, bank.to(own.device)) for own, bank in zip(sets, self.features, strict=True)]
        alone = found[NEIGHBOURHOODS.index(1) :: len(NEIGHBOURHOODS)]
        blurred, sharp = (torch.stack(some).mean(dim=0).unflatten(1, grid) for some in (found, alone))
        return blurred, distance_of_images(sharp)

    def blend(self, distances: Tensor, own: Tensor) -> Tensor:
        """Distances and the model's own values of the same shape, in [0, 1], as one."""
        return (distances + self.weight * own) / (1 + self.weight)

    def judge(
        self, states: Mapping[int, Tensor], grid: tuple[int, int], maps: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compare images, and blend with what the model makes of them.

        Args:
            states, grid: as of [`References.compare`].
            maps (`Tensor` of shape `(B, H, W)`, in [0, 1]): of the model.
            scores (`Tensor` of shape `(B,)`, in [0, 1]): of the model.

        Returns:
            distances and blended maps `(B, H, W)`, blended scores `(B,)`, in [0, 1].
        """
        distances, of_images = self.compare(states, grid)
        scores = self.blend(of_images, scores)
        distances = nn.functional.interpolate(
            distances[:, None], size=maps.shape[-2:], mode="bilinear", align_corners=False
        )[:, 0]
        return distances, self.blend(distances, maps), scores


def describe_patches(states: Mapping[int, Tensor], layers: Sequence[int], grid: tuple[int, int]) -> list[Tensor]:
    """Unit vectors of patches, one set for each layer and neighbourhood, averaged over the patches that exist.

    Args:
        states, grid: as of [`References.compare`].
        layers: which of them, in this order.

    Returns:
        for each layer and r a `Tensor` of shape `(B, N, d)`, float32.
    """
    sets = []
    for layer in layers:
        maps = states[layer][:, 1:].float().transpose(1, 2).unflatten(2, grid)
        for r in NEIGHBOURHOODS:
            mean = maps if r == 1 else nn.functional.avg_pool2d(maps, r, 1, r // 2, count_include_pad=False)
            sets.append(nn.functional.normalize(mean.flatten(2).transpose(1, 2), dim=-1))
    return sets


def distance_to(features: Tensor, bank: Tensor) -> Tensor:
    """(1 - the highest cosine to a vector of the bank) / 2, with few similarities held at once.

    Args:
        features (`Tensor` of shape `(..., d)`, float32): unit vectors.
        bank (`Tensor` of shape `(K, d)`, float): vectors that are of unit length but for rounding.
    """
    rows = features.flatten(0, -2)
    best = rows.new_full((len(rows),), -1.0)
    for part in bank.split(max(256, SIMILARITIES // len(rows))):
        similar = rows @ nn.functional.normalize(part.float(), dim=-1).T
        best = torch.maximum(best, similar.amax(dim=1))
    return ((1 - best) / 2).clamp(0, 1).view(features.shape[:-1])


def distance_of_images(distances: Tensor) -> Tensor:
    """Mean of the highest 2 % of the distances of patches `(B, rows, columns)`, without 5 % at each side: `(B,)`."""
    rows, columns = distances.shape[1:]
    top, left = rows // 20, columns // 20
    inner = distances[:, top : rows - top, left : columns - left].flatten(1)
    return inner.topk(max(1, rows * columns // 50), dim=1).values.mean(dim=1)


def choose_patches(features: Tensor, limit: int) -> Tensor:
    """Of each set the patches that leave no other far away: greedy k-center, from the one farthest from the mean.

    Args:
        features (`Tensor` of shape `(S, K, d)`, float): unit vectors.
        limit (`int`, 1 or more): patches kept of each set.
    """
    if features.shape[1] <= limit:
        return features
    kept = []
    for bank in features.float():
        similar = bank @ nn.functional.normalize(bank.mean(dim=0), dim=0)
        chosen = [int(similar.argmin())]
        similar = bank @ bank[chosen[0]]
        while len(chosen) < limit:
            chosen.append(int(similar.argmin()))
            similar = torch.maximum(similar, bank @ bank[chosen[-1]])
        kept.append(bank[chosen])
    return torch.stack(kept).to(features.dtype)


def read_references(path: str | os.PathLike) -> References:
    """Read what [`~AnomalyCLIPModel.save_references`] wrote.

    Raises:
        ValueError: if it is damaged, or holds other things.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as stored:
            metadata = stored.metadata() or {}
            facts = json.loads(metadata[KEY])
            features = stored.get_tensor("features")
            layers = tuple(int(layer) for layer in facts["layers"])
            weight, count = float(facts["weight"]), int(facts["num_images"])
        fingerprint = stored_fingerprint(metadata)
        sound = features.ndim == 3 and features.is_floating_point() and features.numel() and features.isfinite().all()
        if not sound or len(features) != len(layers) * len(NEIGHBOURHOODS):
            raise ValueError(f"its features are {features.dtype} of shape {tuple(features.shape)}")
        return References(features.half(), layers, weight, count, fingerprint)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no references of this version, or is damaged ({error}); make it anew with "
            "model.set_references(images) and model.save_references(path)"
        ) from error


def default_layers(depth: int) -> list[int]:
    """Three layers from the middle of a vision tower on, without the last: 4, 6, 8 of 9, and 11, 16, 21 of 24."""
    return sorted({max(1, min(round(depth * part / 9), depth - 1)) for part in (4, 6, 8)})


@torch.no_grad()
def make_references(
    model: PromptsMixin,
    images: Any,
    reference_weight: float | None = None,
    max_patches: int | None = None,
    processor: AnomalyCLIPImageProcessor | None = None,
    batch_size: int = 8,
    window: Any = None,
    channels: Sequence[int] | None = None,
) -> References:
    """Features of 1 to 32 images of good parts.

    Args:
        images: a folder of images; one image or several, of any kind that the pipeline takes; a `.safetensors` file
            of [`~AnomalyCLIPModel.save_references`]; `pixel_values` `(B, 3, H, W)`, float; or [`References`].
        reference_weight (`float`, 0 or more, *optional*): of the model's own map and score; 0.1, or as stored.
        max_patches (`int`, 1 or more, *optional*): patches kept, chosen by greedy k-center, which compares each of
            them with all. If absent, all up to 43,808, as many as 32 whole images of 518 pixels have (0.5 GB for
            ViT-L); of more, every second, fourth, ... of all is kept, before memory is taken for the rest: tiles
            may then miss rare details of good parts. A higher number keeps more.
        processor ([`AnomalyCLIPImageProcessor`], *optional*): prepares images; the model's own if absent. Where it
            makes tiles, patches of the references' tiles are kept too.
        batch_size (`int`): images per forward.
        window, channels (*optional*): how images are read, as of the pipeline: as those to be judged.

    Raises:
        ValueError: if there are no images or too many, one can't be read, a setting is out of range, or stored
            features are of another backbone.
    """
    if max_patches is not None and not (type(max_patches) is int and max_patches >= 1):
        raise ValueError(f"max_patches={max_patches!r}, expected 1 or more patches, or None for all")
    check_options({"reference_weight": reference_weight})
    if isinstance(images, str | os.PathLike) and str(images).endswith(".safetensors"):
        images = read_references(images)
    if isinstance(images, References):
        _check_references(model, images)
        found = images
    else:
        read = partial(load_image, window=window, channels=channels)
        found = _read_references(model, images, processor, batch_size, max(MAX_PATCHES, max_patches or 0), read)
    if max_patches is not None:
        found = replace(found, features=choose_patches(found.features, max_patches))
    found = replace(found, features=found.features.to(model.device))
    return found if reference_weight is None else replace(found, weight=float(reference_weight))


def references_of_call(
    detector: Any, preparing: Mapping[str, Any], references: Any = None, reference_weight: float | None = None
) -> References:
    """References of a call of the pipeline; those there are, where the weight alone is given.

    Args:
        detector ([`ZeroShotAnomalyDetectionPipeline`]).
        preparing: `resize`, `tile_size`, `overlap`, `window` and `channels` of the call.
        references, reference_weight: as of [`make_references`].

    Raises:
        ValueError: a weight without references, or as of [`make_references`].
    """
    model = detector.model
    if references is None:
        references = getattr(detector, "_forward_params", {}).get("references") or model.references
        if references is None:
            raise ValueError(f"reference_weight={reference_weight} without references; give both")
    # Patches are compared with those of the same scale and the same window.
    used = detector.settings_of_profile((*READING, *RESIZING))
    used = {**used, **getattr(detector, "_preprocess_params", {}), **preparing}
    processor = with_resizing(detector.image_processor, used, model.config.vision_config.patch_size)
    reading = {name: used.get(name) for name in READING}
    return model.make_references(references, reference_weight, processor=processor, **reading)


def save_references(model: PromptsMixin, path: str | os.PathLike) -> None:
    """Write the references as one `.safetensors` file, which [`~AnomalyCLIPModel.set_references`] takes.

    Raises:
        ValueError: if there are none, or the file is named otherwise.
    """
    if model.references is None:
        raise ValueError("this model has no references; set_references(images) sets them")
    if not str(path).endswith(".safetensors"):
        raise ValueError(f"references are saved as {str(path)!r}, expected a name that ends in .safetensors")
    from .writing import write_references

    write_references(model.references, path)


def _read_references(
    model: PromptsMixin,
    images: Any,
    processor: AnomalyCLIPImageProcessor | None,
    size: int,
    limit: int,
    read: Callable[[Any], Any],
) -> References:
    if isinstance(images, str | os.PathLike):
        images = _files_of(images)
    layers = tuple(sorted(model.config.reference_layers or default_layers(len(model.vision_model.encoder.layers))))
    patch = model.config.vision_config.patch_size
    is_prepared = isinstance(images, Tensor | np.ndarray) and images.ndim == 4 and "float" in str(images.dtype)
    if is_prepared:
        inputs: Any = torch.as_tensor(images)
    else:
        inputs = images_of(images)
        if not isinstance(inputs, list):
            inputs = [images] if inputs is None else list(islice(inputs, MAX_IMAGES + 1))
    if not 1 <= len(inputs) <= MAX_IMAGES:
        raise ValueError(f"{len(inputs)} references, expected 1 to {MAX_IMAGES} images of good parts")
    count = len(inputs)
    if not isinstance(inputs, Tensor):
        inputs = _views(map(read, inputs), with_resizing(processor or model.default_processor(), {}, patch))
    parts: list[Tensor] = []
    step = 1
    for batch in _batches(inputs, size):
        states: Any = dict.fromkeys(layers)
        model.encode_images(batch.to(model.device), kept_states=states)
        sets = describe_patches(states, layers, (batch.shape[-2] // patch, batch.shape[-1] // patch))
        parts.append(torch.stack([one.flatten(0, 1)[::step] for one in sets]))
        while sum(part.shape[1] for part in parts) > limit:
            parts, step = [torch.cat(parts, dim=1)[:, ::2]], 2 * step
    features = torch.cat(parts, dim=1)
    if not bool(features.isfinite().all()):
        raise ValueError("features of the references are not finite; check the checkpoint and the images")
    return References(features.half(), layers, num_images=count, fingerprint=backbone_fingerprint(model))


def _check_references(model: PromptsMixin, references: References) -> None:
    vision = model.config.vision_config
    here, there = backbone_fingerprint(model), references.fingerprint
    same = references.features.shape[-1] == vision.hidden_size and all(
        1 <= layer <= vision.num_hidden_layers for layer in references.layers
    )
    if same and here is not None and there is not None:
        same = same_fingerprints(here, there)
    elif same:
        logger.warning("whether these references are of this backbone can't be told: one has no fingerprint")
    if not same:
        name = model.config.base_model_name_or_path or model.name_or_path
        raise ValueError(f"these references are features of another backbone than {name!r}; make them anew")


def _views(images: Iterable[Any], processor: AnomalyCLIPImageProcessor) -> Iterator[Tensor]:
    """What is scored of images `(3, h, w)`: the whole view and, where the processor makes them, the tiles."""
    for image in images:
        inputs = processor(image, return_tensors="pt")
        yield inputs["pixel_values"][0]
        tiles = inputs.get("tiles", [None])[0]
        for box in () if tiles is None else tiles.boxes:
            yield processor(tiles.image.crop(box), return_tensors="pt", **tiles.settings)["pixel_values"][0]


def _batches(views: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Views `(3, h, w)` in batches of up to so many neighbours of one shape."""
    for _, alike in groupby(views, key=lambda view: view.shape):
        while batch := list(islice(alike, size)):
            yield torch.stack(batch)


def _files_of(place: str | os.PathLike) -> list[Path]:
    """Image files of a folder, by name; or the one file."""
    path = Path(place)
    if not path.is_dir():
        return [path]
    if files := sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file()):
        return files
    raise ValueError(f"the folder {path} holds no image files, expected 1 to {MAX_IMAGES} images of good parts")
