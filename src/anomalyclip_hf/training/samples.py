"""A data set as training sees it: labels, masks and paths known without decoding, pictures on request."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import fit_mask
from ..data.synthetic import DEFECTS, draw_anomaly_on
from ..processing_anomalyclip import to_pil_image

CHUNK = 32  # rows whose files are held at a time


class TrainingSamples:
    """Labels, presence of masks, names and fingerprints of a data set; decodes a picture only when asked to.

    Args:
        dataset: `datasets.Dataset` in the package's schema, or any sequence of dicts with `image`, `label` (0 or 1),
            and perhaps `mask` (None where there is none), `path` and `class_name`.
        name (`str`): what to call it in errors.

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
        self.name = name
        self._arrow = hasattr(dataset, "with_format") and hasattr(dataset, "column_names")
        if self._arrow and (dataset.format or {}).get("type") == "custom":
            self._arrow = False  # what a transform makes of a row is known only row by row
        # Pictures and not what another format makes of them.
        self.dataset = dataset.with_format(None) if self._arrow else dataset
        self._contents: str | None = None
        self._digests: list[list[str]] = []
        self._read_columns()
        self._check_labels()

    def _read_columns(self) -> None:
        dataset, count = self.dataset, len(self.dataset)
        if not self._arrow:
            labels, paths, classes = self._read_rows()
        else:
            names = dataset.column_names
            missing = [key for key in ("image", "label") if key not in names]
            if missing:
                raise ValueError(f"{self.name} has the columns {names} but lacks {missing}; use load_anomaly_dataset")
            labels = list(dataset["label"])
            paths = list(dataset["path"]) if "path" in names else [None] * count
            classes = list(dataset["class_name"]) if "class_name" in names else [None] * count
            self.has_mask = np.array(self._has_cell("mask") if "mask" in names else [False] * count, dtype=bool)
        self.paths = [str(path) if path else f"{self.name}[{index}]" for index, path in enumerate(paths)]
        self.class_names = [str(value) if value is not None else "" for value in classes]
        self._labels = labels

    def _read_rows(self) -> tuple[list, list, list]:
        """Labels, paths and class names of rows that are made when asked for; each is let go before the next."""
        columns: dict[str, list] = {"label": [], "path": [], "class_name": []}
        has_mask = []
        for index in range(len(self.dataset)):
            try:
                row = self.dataset[index]
            except (OSError, ValueError, SyntaxError) as error:
                raise ValueError(f"{self.name}[{index}] can't be read: {error}") from error
            for key, values in columns.items():
                values.append(row.get(key))
            has_mask.append(row.get("mask") is not None)
            self._digests.append([_hash_picture(row.get("image")), _hash_picture(row.get("mask"))])
        self.has_mask = np.array(has_mask, dtype=bool)
        return columns["label"], columns["path"], columns["class_name"]

    def _cells(self, column: str) -> Iterator[Any]:
        """Cells of a picture column as stored: `{"bytes", "path"}` or None."""
        for table in self.dataset.select_columns([column]).with_format("arrow").iter(batch_size=CHUNK):
            yield from table.column(0).to_pylist()

    def _has_cell(self, column: str) -> list[bool]:
        return [bool(cell) and (cell.get("bytes") or cell.get("path")) is not None for cell in self._cells(column)]

    def _check_labels(self) -> None:
        wrong = [i for i, label in enumerate(self._labels) if label not in (0, 1)]
        if wrong:
            raise ValueError(
                f"{self.name}: {len(wrong)} of {len(self)} labels are neither 0 (normal) nor 1 (anomalous), such as "
                f"label={self._labels[wrong[0]]!r} of {self.paths[wrong[0]]}; training needs labels"
            )
        self.labels = np.array([int(label) for label in self._labels], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> tuple[Any, Any]:
        """Image and mask (or None) of one sample.

        Raises:
            ValueError: if the picture can't be read; names it.
        """
        try:
            sample = self.dataset[int(index)]
            image, mask = sample["image"], sample.get("mask")
            if isinstance(image, Image.Image) and isinstance(mask, Image.Image):
                mask = fit_mask(mask, image.size, f"of {self.paths[index]}")
            return image, mask
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{self.paths[index]} can't be read: {error}") from error

    @property
    def uses_masks(self) -> bool:
        """Whether an anomalous image has a mask: empty masks alone would teach that nothing is anomalous."""
        return bool((self.has_mask & (self.labels == 1)).any())

    @property
    def in_local_loss(self) -> np.ndarray:
        """Which samples take part in the local loss, `(N,)` bool."""
        return (self.has_mask | (self.labels == 0)) & self.uses_masks

    @property
    def source(self) -> Any:
        """The user's own data set, also where anomalies are drawn onto it."""
        return self.dataset

    def outline(self) -> str:
        """Digest of names, labels and presence of masks: the same on another machine."""
        names = [os.path.basename(path) for path in self.paths]
        return _digest([names, self.labels.tolist(), self.has_mask.tolist()])

    def fingerprint(self) -> str:
        """Digest of outline and pictures: the bytes of files, wherever they lie, or those held in the data set."""
        if self._contents is None:
            digest = hashlib.sha256(self.outline().encode())
            if not self._arrow:
                digest.update(repr(self._digests).encode())
            for column in ("image", "mask") if self._arrow else ():
                if column in self.dataset.column_names:
                    # Column types hold rules, such as the threshold of masks.
                    digest.update(str(self.dataset.features[column]).encode())
                    for cell in self._cells(column):
                        digest.update(_describe_cell(cell).encode())
            self._contents = digest.hexdigest()
        return self._contents


class SyntheticAnomalies:
    """The user's samples, followed by a damaged copy of each of the normal ones, with masks.

    The copy of an image is drawn from the seed and its index alone, so that its features can be kept.

    Args:
        samples ([`TrainingSamples`]).
        seed (`int`, 0 or more): another seed draws other anomalies.
        max_side (`int`, pixels): larger images are shrunk before drawing; the model sees no more anyway.
    """

    def __init__(self, samples: TrainingSamples, seed: int = 0, max_side: int = 1036):
        self.samples = samples
        self.seed, self.max_side = seed, max_side
        self.normal = np.flatnonzero(self.samples.labels == 0)
        if len(self.normal) == 0:
            raise ValueError("synthetic_anomalies=True but no image of the training set is normal (label 0)")

    def __len__(self) -> int:
        return len(self.samples) + len(self.normal)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.samples):
            image, mask = self.samples.load(index)
            return {"image": image, "mask": mask}
        source = int(self.normal[index - len(self.samples)])
        image, _ = self.samples.load(source)
        if isinstance(image, Image.Image):
            image = to_pil_image(image, self.samples.paths[source]).convert("RGB")
            shrink = max(self.max_side / max(image.size), 32 / min(image.size))  # the shorter side stays drawable
            if shrink < 1:
                image = image.resize([max(32, round(side * shrink)) for side in image.size], Image.Resampling.BICUBIC)
        damaged, mask, _ = draw_anomaly_on(image, seed=(self.seed, source))
        return {"image": Image.fromarray(damaged), "mask": Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255)}


class SyntheticSamples(TrainingSamples):
    """[`TrainingSamples`] of [`SyntheticAnomalies`], without drawing anything until a picture is asked for."""

    def __init__(self, dataset: SyntheticAnomalies):
        own = dataset.samples
        self.dataset, self.name, self._arrow, self._own = dataset, own.name, False, own
        count = len(dataset.normal)
        self.labels = np.concatenate([own.labels, np.ones(count, dtype=np.int64)])
        self.has_mask = np.concatenate([own.has_mask, np.ones(count, dtype=bool)])
        self.paths = own.paths + [f"{own.paths[i]} (with a drawn anomaly)" for i in dataset.normal]
        self.class_names = own.class_names + [own.class_names[i] for i in dataset.normal]

    @property
    def source(self) -> Any:
        return self._own.dataset

    def fingerprint(self) -> str:
        """As of the user's data, with what decides the drawings."""
        from .. import __version__

        dataset: SyntheticAnomalies = self.dataset
        return _digest([self._own.fingerprint(), "drawn", DEFECTS, __version__, dataset.seed, dataset.max_side])


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
        ValueError: if there are only normal images, only anomalous ones without masks, only one kind for a balanced
            sampler, nothing for the losses that are left, or a normal image has a non-empty mask.
    """
    check_kinds(samples, np.arange(len(samples)), synthetic, balanced, loss_weights)
    normal, anomalous = int((samples.labels == 0).sum()), int((samples.labels == 1).sum())
    warnings = []
    if normal == 0:
        warnings.append(
            f"{samples.name} has only anomalous images: image scores learn nothing from it, maps learn from its masks"
        )
    without = int(((samples.labels == 1) & ~samples.has_mask).sum())
    if without == anomalous and anomalous:
        warnings.append(f"no anomalous image of {samples.name} has a mask: training with the image loss alone")
    elif without:
        warnings.append(
            f"{without} of {anomalous} anomalous images of {samples.name} have no mask and take part in the image "
            "loss alone"
        )
    _check_masks_of_normal(samples)
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


def _check_masks_of_normal(samples: TrainingSamples) -> None:
    contradictions = []
    for index in np.flatnonzero((samples.labels == 0) & samples.has_mask):
        try:
            _, mask = samples.load(int(index))
        except ValueError:  # what can't be read is left out, and told of, when features are made
            continue
        if np.asarray(mask).any():
            contradictions.append(samples.paths[index])
    if contradictions:
        shown = ", ".join(contradictions[:5]) + (" ..." if len(contradictions) > 5 else "")
        raise ValueError(
            f"{samples.name}: {len(contradictions)} images have label 0 (normal) but a mask that marks anomalous "
            f"pixels: {shown}; correct the label or the mask"
        )


def check_validation_set(train: TrainingSamples, validation: TrainingSamples) -> None:
    """Refuse to validate on images that are trained on.

    Raises:
        ValueError: if both hold the same file or picture.
    """
    first, second = _identities(train), _identities(validation)
    # Names that are no files may repeat by chance: there the pictures decide.
    shared = [
        name
        for name, index in first.items()
        if name in second and (os.path.exists(name) or _same_picture(train, index, validation, second[name]))
    ]
    if shared:
        raise ValueError(
            f"{len(shared)} images are in both the training and the validation set, such as {shared[0]}; the best "
            "epoch has to be chosen on other data"
        )


def check_metric(validation: TrainingSamples, metric: str) -> None:
    """Refuse a metric that the validation set can't give.

    Raises:
        ValueError: if no class has both kinds of images, or no anomalous image has a mask.
    """
    if metric.startswith("image_"):
        kinds: dict[str, set[int]] = {}
        for name, label in zip(validation.class_names, validation.labels.tolist(), strict=True):
            kinds.setdefault(name, set()).add(label)
        if not any(len(labels) == 2 for labels in kinds.values()):
            raise ValueError(
                f"metric={metric!r} but no class of {validation.name} has both normal and anomalous images; choose "
                "another metric or validation set"
            )
    elif metric != "loss" and not validation.uses_masks:
        raise ValueError(
            f"metric={metric!r} but no anomalous image of {validation.name} has a mask; choose image_auroc"
        )


def _identities(samples: TrainingSamples) -> dict[str, int]:
    samples = getattr(samples, "_own", samples)
    if any(path.startswith(f"{samples.name}[") for path in samples.paths):
        return {_picture_of(samples, index): index for index in range(len(samples))}
    return {os.path.realpath(path) if os.path.exists(path) else path: i for i, path in enumerate(samples.paths)}


def _same_picture(first: TrainingSamples, index: int, second: TrainingSamples, other: int) -> bool:
    first, second = getattr(first, "_own", first), getattr(second, "_own", second)
    return _picture_of(first, index) == _picture_of(second, other)


def _picture_of(samples: TrainingSamples, index: int) -> str:
    return _hash_picture(samples.load(index)[0]) if samples._arrow else samples._digests[index][0]


def _describe_cell(cell: Any) -> str:
    """What decides the picture of a cell: its bytes, not where they lie."""
    if not isinstance(cell, dict):
        return str(cell)
    path, rest = cell.get("path"), {key: value for key, value in cell.items() if key not in ("bytes", "path")}
    if cell.get("bytes") is not None:
        return str([hashlib.sha256(cell["bytes"]).hexdigest(), rest])
    try:
        return str([hashlib.sha256(Path(str(path)).read_bytes()).hexdigest(), rest])
    except (OSError, ValueError):  # a URL, or a file that will be reported when it is read
        return str([path, rest])


def _hash_picture(image: Any) -> str:
    if image is None:
        return "none"
    if isinstance(image, (str, os.PathLike)):
        return _describe_cell({"path": os.fspath(image)})
    array = np.ascontiguousarray(image)
    return hashlib.sha256(str((array.shape, array.dtype)).encode() + array.tobytes()).hexdigest()


def _digest(value: Sequence) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
