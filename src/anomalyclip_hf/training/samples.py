"""A data set as training sees it: labels, masks, paths and contents known without decoding, pictures on request."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from ..data.images import fit_mask, read_image
from ..data.reader import split_page
from ..data.synthetic import DEFECTS, draw_anomaly_on

if TYPE_CHECKING:
    import datasets

    Rows: TypeAlias = datasets.Dataset | Sequence[Mapping[str, Any]]

COLUMNS = ("image", "mask", "label", "path", "class_name")
CHUNK = 32  # rows whose files are held at a time
MAX_SIDE = 1036  # pixels: larger images are shrunk before anomalies are drawn; the model sees no more anyway


class TrainingSamples:
    """Labels, presence of masks, names and contents of a data set; a picture is decoded only when asked for.

    Args:
        dataset: `datasets.Dataset` in the package's schema, or any sequence of dicts with `image`, `label` (0 or 1),
            and perhaps `mask` (None where there is none), `path` and `class_name`.
        name (`str`): what to call it in errors.

    Attributes:
        labels (`(N,)` int64), has_mask (`(N,)` bool), paths and class_names (`list[str]`), digests (`list[str]`, of
        each image's and mask's bytes, wherever they lie).

    Raises:
        ValueError: if it is empty, or a label is missing or neither 0 nor 1.
        TypeError: if it has no length (a stream).
    """

    def __init__(self, dataset: Rows, name: str = "train_dataset"):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"{name} is a {type(dataset).__name__} without a length, expected a data set that can be read in any "
                "order; load it without streaming"
            )
        if len(dataset) == 0:
            raise ValueError(
                f"{name} is empty, expected at least one image; check the source, the split and the classes"
            )
        self.name, self.dataset = name, dataset
        facts = [_describe_row(row) for row in self._rows()]
        labels, paths, classes, masked, self.digests, self.mask_digests = map(list, zip(*facts, strict=True))
        self.has_mask = np.array(masked, dtype=bool)
        self.paths = [str(path) if path else f"{name}[{index}]" for index, path in enumerate(paths)]
        self.class_names = ["" if value is None else str(value) for value in classes]
        if wrong := [index for index, label in enumerate(labels) if label not in (0, 1)]:
            raise ValueError(
                f"{name}: {len(wrong)} of {len(labels)} labels are neither 0 (normal) nor 1 (anomalous), such as "
                f"label={labels[wrong[0]]!r} of {self.paths[wrong[0]]}; training needs labels"
            )
        self.labels = np.array(labels, dtype=np.int64)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """All rows, each let go before the next; a `datasets.Dataset` gives pictures as stored, not decoded."""
        dataset: Any = self.dataset
        # What a transform makes of a row is known only row by row.
        if hasattr(dataset, "with_format") and (dataset.format or {}).get("type") != "custom":
            self.dataset = dataset.with_format(None)  # pictures, and not what another format makes of them
            names = [name for name in COLUMNS if name in dataset.column_names]
            if missing := {"image", "label"}.difference(names):
                found = f"{self.name} has the columns {dataset.column_names}"
                raise ValueError(f"{found} but lacks {sorted(missing)}; use load_anomaly_dataset")
            for table in dataset.select_columns(names).with_format("arrow").iter(batch_size=CHUNK):
                yield from table.to_pylist()
            return
        for index in range(len(dataset)):
            try:
                row = dataset[index]
            except (OSError, ValueError, SyntaxError) as error:
                raise ValueError(f"{self.name}[{index}] can't be read: {error}") from error
            yield row

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
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

    def fingerprint(self) -> str:
        """Digest of names, labels and contents: the same wherever the files lie."""
        names = [os.path.basename(path) for path in self.paths]
        # Column types hold rules, such as the threshold of masks.
        features = getattr(self.dataset, "features", None) or {}
        rules = [str(features.get(column)) for column in ("image", "mask")]
        return _digest(repr([names, self.labels.tolist(), self.digests, self.mask_digests, rules]).encode())


class SyntheticAnomalies(TrainingSamples):
    """Samples of the user's, followed by a damaged copy of each normal one, with its mask.

    The copy of an image is drawn from the seed and its index alone, when it is asked for, so that its features can be
    kept.

    Args:
        samples ([`TrainingSamples`]).
        seed (`int`, 0 or more): another seed draws other anomalies.

    Raises:
        ValueError: if no image is normal.
    """

    def __init__(self, samples: TrainingSamples, seed: int = 0):
        from .. import __version__

        self.samples, self.seed = samples, seed
        self.normal = np.flatnonzero(samples.labels == 0)
        if len(self.normal) == 0:
            raise ValueError("synthetic_anomalies=True but no image of the training set is normal (label 0)")
        self.dataset, self.name = samples.dataset, samples.name
        self.labels = np.append(samples.labels, np.ones_like(self.normal))
        self.has_mask = np.append(samples.has_mask, np.ones(len(self.normal), dtype=bool))
        self.paths = samples.paths + [f"{samples.paths[i]} (with a drawn anomaly)" for i in self.normal]
        self.class_names = samples.class_names + [samples.class_names[i] for i in self.normal]
        drawn = f"drawn by {__version__} {DEFECTS} {seed} {MAX_SIDE} on "
        self.digests = samples.digests + [f"{drawn}{samples.digests[i]}" for i in self.normal]
        self.mask_digests = samples.mask_digests + [drawn] * len(self.normal)

    def _load(self, index: int) -> tuple[Any, Any]:
        if index < len(self.samples):
            return self.samples[index]
        source = int(self.normal[index - len(self.samples)])
        image = read_image(self.samples[source][0])
        shrink = max(MAX_SIDE / max(image.size), 32 / min(image.size))  # the shorter side stays drawable
        if shrink < 1:
            width, height = (max(32, round(side * shrink)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        damaged, mask, _ = draw_anomaly_on(image, seed=(self.seed, source))
        return Image.fromarray(damaged), Image.fromarray(mask.astype(np.uint8) * 255)


def check_training_set(
    samples: TrainingSamples,
    balanced: bool = False,
    loss_weights: tuple[float, float] = (1.0, 1.0),
    members: np.ndarray | None = None,
) -> list[str]:
    """Refuse sets that nothing can be learned from, and contradictions between labels and masks.

    `members` `(K,)` are the images that turned out to be readable, where that is known.

    Returns:
        warnings, for sets that can be used with care.

    Raises:
        ValueError: if a kind of images or the masks that training needs are missing, or if a normal image has a mask
            that is not empty.
    """
    readable = np.arange(len(samples)) if members is None else members
    is_normal, has_mask = samples.labels[readable] == 0, samples.has_mask[readable]
    normal, anomalous, masked = (int(kind.sum()) for kind in (is_normal, ~is_normal, ~is_normal & has_mask))
    name, learns_maps = samples.name, masked > 0 and loss_weights[1] > 0
    with_both = "train on a split with both (train_split=test, as the authors do), or set synthetic_anomalies=True"
    for is_wrong, text in (
        (anomalous == 0, f"nothing can be told apart; {with_both}"),
        (normal == 0 and balanced, "balanced=True has nothing to balance; add normal images, or set balanced=False"),
        (normal == 0 and not learns_maps, "nothing can be told apart without masks; add normal images, or masks"),
        (loss_weights[0] == 0 and not learns_maps, "global_loss_weight=0 needs masks; add some, or raise it"),
    ):
        if is_wrong:
            which = "readable " if len(readable) < len(samples) else ""
            counts = f"{normal} normal and {anomalous} anomalous {which}images, {masked} of these with a mask"
            left_out = "" if loss_weights[1] > 0 else " (local_loss_weight=0 leaves it out)"
            raise ValueError(f"{name} has {counts}{left_out}, so that {text}")
    if members is not None:
        return []
    if marked := [samples.paths[i] for i in np.flatnonzero(is_normal & has_mask) if _is_marked(samples, int(i))]:
        raise ValueError(
            f"{name}: {len(marked)} images have label 0 (normal) but a mask that marks anomalous pixels: "
            f"{shorten(marked)}; correct the label or the mask"
        )
    notices = []
    if normal == 0:
        notices.append(f"{name} has only anomalous images: image scores learn nothing from it, maps from its masks")
    if masked < anomalous:
        count = f"{anomalous - masked} of {anomalous} anomalous images of {name}"
        notices.append(f"{count} have no mask and take part in the image loss alone")
    return notices


def check_validation_set(train: TrainingSamples, validation: TrainingSamples, metric: str) -> None:
    """Refuse (ValueError) to validate on images that are trained on, or by a metric that the set can't give."""
    if shared := sorted(_identities(train) & _identities(validation)):
        raise ValueError(
            f"{len(shared)} images are in both the training and the validation set, such as {shared[0]}; the best "
            "epoch has to be chosen on other data"
        )
    kinds = set(zip(validation.class_names, validation.labels.tolist(), strict=True))
    lacking = None
    if metric.startswith("image_") and not any((name, 0) in kinds and (name, 1) in kinds for name, _ in kinds):
        lacking = f"no class of {validation.name} has both normal and anomalous images"
    elif not metric.startswith("image_") and metric != "loss" and not validation.uses_masks:
        lacking = f"no anomalous image of {validation.name} has a mask"
    if lacking:
        raise ValueError(f"metric={metric!r} but {lacking}; choose another metric or validation set")


def shorten(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _identities(samples: TrainingSamples) -> set[str]:
    """Files where they exist, and else pictures: names that are no files may repeat by chance."""
    pairs = zip(samples.paths, samples.digests, strict=True)
    return {os.path.realpath(path) if os.path.exists(path) else digest for path, digest in pairs}


def _is_marked(samples: TrainingSamples, index: int) -> bool:
    try:
        return bool(np.asarray(samples[index][1]).any())
    except ValueError:  # what can't be read is left out, with a warning, when features are made
        return False


def _describe_row(row: Mapping[str, Any]) -> tuple[Any, Any, Any, bool, str, str]:
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
