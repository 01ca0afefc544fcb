"""A data set as training sees it: labels, masks, paths and contents known without decoding, pictures on request."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import fit_mask, read_image
from ..data.synthetic import DEFECTS, draw_anomaly_on
from ..images_anomalyclip import split_page

COLUMNS = ("image", "mask", "label", "path", "class_name")
CHUNK = 32  # rows whose files are held at a time


class TrainingSamples:
    """Labels, presence of masks, names and contents of a data set; a picture is decoded only when asked for.

    Args:
        dataset: `datasets.Dataset` in the package's schema, or any sequence of dicts with `image`, `label` (0 or 1),
            and perhaps `mask` (None where there is none), `path` and `class_name`.
        name (`str`): what to call it in errors.

    Attributes:
        labels (`(N,)` int64), has_mask (`(N,)` bool), paths and class_names (`list[str]`), digests (`list[str]`, of
        each image's bytes, wherever they lie).

    Raises:
        ValueError: if it is empty, or a label is missing or neither 0 nor 1.
        TypeError: if it has no length (a stream).
    """

    def __init__(self, dataset: Any, name: str = "train_dataset"):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"{name} is a {type(dataset).__name__} without a length, expected a data set that can be read in any "
                "order; load it without streaming"
            )
        if len(dataset) == 0:
            raise ValueError(
                f"{name} is empty, expected at least one image; check the source, the split and the classes"
            )
        self.name, self.source = name, dataset
        stored = hasattr(dataset, "with_format") and hasattr(dataset, "column_names")
        if stored and (dataset.format or {}).get("type") == "custom":
            stored = False  # what a transform makes of a row is known only row by row
        # Pictures and not what another format makes of them.
        self.dataset = dataset.with_format(None) if stored else dataset
        facts = [_describe_row(row) for row in (self._stored_rows() if stored else self._rows())]
        labels, paths, classes, masked, self.digests, self._masks = map(list, zip(*facts, strict=True))
        self.has_mask = np.array(masked, dtype=bool)
        self.paths = [str(path) if path else f"{name}[{index}]" for index, path in enumerate(paths)]
        self.class_names = ["" if value is None else str(value) for value in classes]
        if wrong := [index for index, label in enumerate(labels) if label not in (0, 1)]:
            raise ValueError(
                f"{name}: {len(wrong)} of {len(labels)} labels are neither 0 (normal) nor 1 (anomalous), such as "
                f"label={labels[wrong[0]]!r} of {self.paths[wrong[0]]}; training needs labels"
            )
        self.labels = np.array([int(label) for label in labels], dtype=np.int64)

    def _stored_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of a `datasets.Dataset` with pictures as stored: `{"bytes", "path"}` or None."""
        names = [name for name in COLUMNS if name in self.dataset.column_names]
        if missing := [name for name in ("image", "label") if name not in names]:
            found = self.dataset.column_names
            raise ValueError(f"{self.name} has the columns {found} but lacks {missing}; use load_anomaly_dataset")
        for table in self.dataset.select_columns(names).with_format("arrow").iter(batch_size=CHUNK):
            yield from table.to_pylist()

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Rows that are made when asked for; each is let go before the next."""
        for index in range(len(self.dataset)):
            try:
                row = self.dataset[index]
            except (OSError, ValueError, SyntaxError) as error:
                raise ValueError(f"{self.name}[{index}] can't be read: {error}") from error
            yield row

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> tuple[Any, Any]:
        """Image and mask (or None) of one sample.

        Raises:
            ValueError: if the picture can't be read; names it.
        """
        try:
            return self._load(int(index))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{self.paths[index]} can't be read: {error}") from error

    def _load(self, index: int) -> tuple[Any, Any]:
        row = self.dataset[index]
        image, mask = row["image"], row.get("mask")
        if isinstance(image, Image.Image) and isinstance(mask, Image.Image):
            mask = fit_mask(mask, image.size, f"of {self.paths[index]}")
        return image, mask

    @property
    def uses_masks(self) -> bool:
        """Whether an anomalous image has a mask: empty masks alone would teach that nothing is anomalous."""
        return bool((self.has_mask & (self.labels == 1)).any())

    @property
    def in_local_loss(self) -> np.ndarray:
        """Which samples take part in the local loss, `(N,)` bool."""
        return (self.has_mask | (self.labels == 0)) & self.uses_masks

    def fingerprint(self) -> str:
        """Digest of names, labels and contents: the same wherever the files lie."""
        names = [os.path.basename(path) for path in self.paths]
        # Column types hold rules, such as the threshold of masks.
        features = getattr(self.dataset, "features", None) or {}
        rules = [str(features.get(column)) for column in ("image", "mask")]
        return _digest(repr([names, self.labels.tolist(), self.digests, self._masks, rules]).encode())


class SyntheticAnomalies(TrainingSamples):
    """Samples of the user's, followed by a damaged copy of each normal one, with its mask.

    The copy of an image is drawn from the seed and its index alone, when it is asked for, so that its features can be
    kept.

    Args:
        samples ([`TrainingSamples`]).
        seed (`int`, 0 or more): another seed draws other anomalies.
        max_side (`int`, pixels): larger images are shrunk before drawing; the model sees no more anyway.

    Raises:
        ValueError: if no image is normal.
    """

    def __init__(self, samples: TrainingSamples, seed: int = 0, max_side: int = 1036):
        from .. import __version__

        self.samples, self.seed, self.max_side = samples, seed, max_side
        self.normal = np.flatnonzero(samples.labels == 0)
        if len(self.normal) == 0:
            raise ValueError("synthetic_anomalies=True but no image of the training set is normal (label 0)")
        self.dataset, self.source, self.name = samples.dataset, samples.source, samples.name
        self.labels = np.append(samples.labels, np.ones(len(self.normal), dtype=np.int64))
        self.has_mask = np.append(samples.has_mask, np.ones(len(self.normal), dtype=bool))
        self.paths = samples.paths + [f"{samples.paths[i]} (with a drawn anomaly)" for i in self.normal]
        self.class_names = samples.class_names + [samples.class_names[i] for i in self.normal]
        drawn = f"drawn by {__version__} {DEFECTS} {seed} {max_side} on "
        self.digests = samples.digests + [f"{drawn}{samples.digests[i]}" for i in self.normal]
        self._masks = samples._masks + [drawn] * len(self.normal)

    def _load(self, index: int) -> tuple[Any, Any]:
        if index < len(self.samples):
            return self.samples.load(index)
        source = int(self.normal[index - len(self.samples)])
        image = read_image(self.samples.load(source)[0])
        shrink = max(self.max_side / max(image.size), 32 / min(image.size))  # the shorter side stays drawable
        if shrink < 1:
            width, height = (max(32, round(side * shrink)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        damaged, mask, _ = draw_anomaly_on(image, seed=(self.seed, source))
        return Image.fromarray(damaged), Image.fromarray(mask.astype(np.uint8) * 255)


def check_training_set(
    samples: TrainingSamples,
    synthetic: bool = False,
    balanced: bool = False,
    loss_weights: tuple[float, float] = (1.0, 1.0),
) -> list[str]:
    """Refuse sets that nothing can be learned from, and contradictions between labels and masks.

    Args:
        samples ([`TrainingSamples`]).
        synthetic (`bool`): anomalies are drawn onto the normal images.
        balanced (`bool`): both kinds are drawn equally often.
        loss_weights (`tuple` of two `float`): of the global and of the local loss; 0 = it is left out.

    Returns:
        warnings, for sets that can be used with care.

    Raises:
        ValueError: as of [`check_kinds`], or if a normal image has a mask that is not empty.
    """
    check_kinds(samples, np.arange(len(samples)), synthetic, balanced, loss_weights)
    normal, anomalous = (samples.labels == 0), (samples.labels == 1)
    warnings = []
    if not normal.any():
        warnings.append(
            f"{samples.name} has only anomalous images: image scores learn nothing from it, maps learn from its masks"
        )
    without = int((anomalous & ~samples.has_mask).sum())
    if without and not samples.uses_masks:
        warnings.append(f"no anomalous image of {samples.name} has a mask: training with the image loss alone")
    elif without:
        warnings.append(
            f"{without} of {anomalous.sum()} anomalous images of {samples.name} have no mask and take part in the "
            "image loss alone"
        )
    marked = [samples.paths[i] for i in np.flatnonzero(normal & samples.has_mask) if _is_marked(samples, int(i))]
    if marked:
        shown = ", ".join(marked[:5]) + (" ..." if len(marked) > 5 else "")
        raise ValueError(
            f"{samples.name}: {len(marked)} images have label 0 (normal) but a mask that marks anomalous pixels: "
            f"{shown}; correct the label or the mask"
        )
    return warnings


def check_kinds(
    samples: TrainingSamples,
    members: np.ndarray,
    synthetic: bool = False,
    balanced: bool = False,
    loss_weights: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Refuse images that nothing can be learned from.

    Args:
        samples, synthetic, balanced, loss_weights: as of [`check_training_set`].
        members (`np.ndarray` of shape `(K,)`, int): the images that count, such as the readable ones.

    Raises:
        ValueError: if a kind of images or the masks that training needs are missing.
    """
    labels, masked = samples.labels[members], samples.has_mask[members]
    normal, anomalous = int((labels == 0).sum()), int((labels == 1).sum())
    masks_count = bool((masked & (labels == 1)).any() or synthetic) and loss_weights[1] > 0
    which = "readable " if len(members) < len(samples) else ""
    if anomalous == 0 and not synthetic:
        raise ValueError(
            f"{samples.name} has {normal} {which}normal images and no anomalous one, so there is nothing to tell "
            "apart: train on a split with both (train_split=test, as the authors do), or set synthetic_anomalies=True"
        )
    if normal == 0 and balanced:
        raise ValueError(
            f"balanced=True but {samples.name} has {anomalous} {which}anomalous images and no normal one, so there is "
            "nothing to balance: add normal images, or set balanced=False"
        )
    if normal == 0 and not masks_count:
        what = "no mask" if loss_weights[1] > 0 else "local_loss_weight=0 leaves the masks out"
        raise ValueError(
            f"{samples.name} has {anomalous} {which}anomalous images, no normal one and {what}, so there is nothing "
            "to tell apart: add normal images or masks"
        )
    if loss_weights[0] == 0 and not masks_count:
        raise ValueError(
            f"global_loss_weight=0 but no {which}anomalous image of {samples.name} has a mask for the local loss: add "
            "masks, or raise global_loss_weight"
        )


def check_validation_set(train: TrainingSamples, validation: TrainingSamples, metric: str) -> None:
    """Refuse to validate on images that are trained on, or by a metric that the set can't give.

    Raises:
        ValueError: if both hold the same file or picture, no class has both kinds of images for a metric of images,
            or no anomalous image has a mask for a metric of pixels.
    """
    if shared := sorted(_identities(train) & _identities(validation)):
        raise ValueError(
            f"{len(shared)} images are in both the training and the validation set, such as {shared[0]}; the best "
            "epoch has to be chosen on other data"
        )
    both_kinds = {name for name, label in zip(validation.class_names, validation.labels, strict=True) if label}
    both_kinds &= {name for name, label in zip(validation.class_names, validation.labels, strict=True) if not label}
    if metric.startswith("image_") and not both_kinds:
        raise ValueError(
            f"metric={metric!r} but no class of {validation.name} has both normal and anomalous images; choose "
            "another metric or validation set"
        )
    if not metric.startswith("image_") and metric != "loss" and not validation.uses_masks:
        raise ValueError(
            f"metric={metric!r} but no anomalous image of {validation.name} has a mask; choose image_auroc"
        )


def _identities(samples: TrainingSamples) -> set[str]:
    """Files where they exist, and else pictures: names that are no files may repeat by chance."""
    pairs = zip(samples.paths, samples.digests, strict=True)
    return {os.path.realpath(path) if os.path.exists(path) else digest for path, digest in pairs}


def _is_marked(samples: TrainingSamples, index: int) -> bool:
    try:
        return bool(np.asarray(samples.load(index)[1]).any())
    except ValueError:  # what can't be read is left out, with a warning, when features are made
        return False


def _describe_row(row: dict[str, Any]) -> tuple:
    """Label, path, class, whether there is a mask, and digests of image and mask."""
    image, mask = row.get("image"), row.get("mask")
    if isinstance(mask, dict) and mask.get("bytes") is None and mask.get("path") is None:
        mask = None
    facts = (row.get("label"), row.get("path"), row.get("class_name"))
    return (*facts, mask is not None, _hash_picture(image), _hash_picture(mask))


def _hash_picture(image: Any) -> str:
    """Digest of what decides a picture: its bytes, not where they lie."""
    if image is None:
        return "none"
    if isinstance(image, (str, os.PathLike)):
        image = {"bytes": None, "path": os.fspath(image)}
    if not isinstance(image, dict):
        array = np.ascontiguousarray(image)
        return _digest(str((array.shape, array.dtype)).encode() + array.tobytes())
    content, path = image.get("bytes"), image.get("path")
    if content is None:
        try:
            file, page = split_page(str(path))
            content = Path(file).read_bytes() + (b"" if page == 1 else f" page {page}".encode())
        except (OSError, ValueError):  # a URL, or a file that will be reported when it is read
            content = str(path).encode(errors="surrogatepass")
    turn = image.get("turn")  # of a mask, beside its file
    return _digest(content + (b"" if turn is None else f" turned {turn}".encode()))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
