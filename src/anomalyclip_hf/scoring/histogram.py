"""Pixels of any number of images, counted in a fixed amount of memory.

Scores are counted in bins of the float32 bit pattern, ordered as the numbers are. No range has to be known before:
the bins start as single float32 values and are doubled in width only when the scores seen no longer fit. Everything
counted is an integer, so that the order of images, batches and processes does not change a single digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from .ranking import Maps, Ranking, check_finite, check_pair, label_regions, pair_maps

# A region of s pixels gives each of them the weight 2**40 / s: 8 million regions fit into int64.
_REGION_WEIGHT = 2**40
_GROUP_PIXELS = 2**19  # counted together: fewer walks over the bins, while the pixels still fit into the cache
_TABLES = ("normal", "anomalous", "weight")
_SCALARS = ("_shift", "num_images", "num_regions", "_lowest", "_highest")


class PixelHistogram:
    """Counts of the scores of normal and anomalous pixels.

    Args:
        num_bins: bins kept, 24 bytes each (25 MB by default).
    """

    _settings: ClassVar[tuple[str, ...]] = ("num_bins",)  # alike in all that are merged

    def __init__(self, num_bins: int = 2**20):
        if num_bins < 2:
            raise ValueError(f"num_bins={num_bins} but at least 2 are expected (default 1048576)")
        self.num_bins = int(num_bins)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.num_images = self.num_regions = 0
        self._lowest, self._highest = 2**32, -1  # keys seen
        self._shift = self._first = 0  # a bin holds 2**shift keys; the first bin holds keys from first << shift
        self._tables = {name: np.zeros(self.num_bins, dtype=np.int64) for name in _TABLES}

    def update(self, maps: Maps, masks: Maps) -> None:
        """Add images: `(N, H, W)` or a sequence of `(H, W)`, as in `rank_pixels`; float64 becomes float32.

        Raises:
            ValueError: NaN or infinite scores, masks with other values, shapes that do not match. Images before the
                faulty one may have been added.
        """
        group: list[tuple[np.ndarray, np.ndarray]] = []
        for index, pair in enumerate(pair_maps(maps, masks)):
            scores, mask = check_pair(*pair, index)
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, refused below
                scores = scores.astype(np.float32, copy=False)
            check_finite(scores.min(), scores.max(), f"maps[{index}]")
            group.append((to_keys(scores), mask))
            if sum(keys.size for keys, _ in group) >= _GROUP_PIXELS:
                self._add(group)
                group = []
        if group:
            self._add(group)

    def merge(self, other: Self) -> Self:
        """Add the images of another histogram with the same settings, as if all had been added here."""
        for name in self._settings:
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                raise ValueError(f"{name}={here} here but {there} there: use one value")
        if other.num_images:
            self._make_room(other._lowest, other._highest, at_least=other._shift)
            self._take(other._tables, other._first, other._shift)
            self.num_images += other.num_images
            self.num_regions += other.num_regions
        return self

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers and int64 arrays (occupied bins only), to save or to send to another process."""
        used = np.flatnonzero(self._tables["normal"] + self._tables["anomalous"])
        state = {name.lstrip("_"): getattr(self, name) for name in (*self._settings, *_SCALARS)}
        return state | {name: table[used] for name, table in self._tables.items()} | {"bins": used + self._first}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a histogram from `state_dict()`."""
        restored = cls(**{name: np.asarray(state[name]).item() for name in cls._settings})
        for name in _SCALARS:
            setattr(restored, name, int(state[name.lstrip("_")]))
        bins = np.asarray(state["bins"])
        restored._first = int(bins[0]) if len(bins) else 0
        for name in _TABLES:
            restored._tables[name][bins - restored._first] = state[name]
        return restored

    def max_error(self) -> float:
        """What the AUROC of `ranking()` can be off at the very most, given the counts in each bin.

        The true error is usually a hundred times less. It is 0 while each bin holds one float32 value.
        """
        normal, anomalous = (self._tables[name].astype(np.float64) for name in ("normal", "anomalous"))
        pairs = normal.sum() * anomalous.sum()
        return float(np.dot(normal, anomalous) / (2.0 * pairs)) if self._shift and pairs else 0.0

    def _add(self, group: list[tuple[np.ndarray, np.ndarray]]) -> None:
        lowest = min(int(keys.min()) for keys, _ in group)
        self._make_room(lowest, max(int(keys.max()) for keys, _ in group))
        start = (lowest >> self._shift) - self._first
        # Counting from the lowest bin of the group on is faster than counting over all bins.
        bins = [(keys >> np.uint32(self._shift)).astype(np.int64) - (self._first + start) for keys, _ in group]
        counts = np.bincount(np.concatenate([one.ravel() for one in bins]))
        part = {name: table[start : start + len(counts)] for name, table in self._tables.items()}
        part["normal"] += counts
        for one, (_, mask) in zip(bins, group, strict=True):
            region, sizes = label_regions(mask)
            if len(region):
                marked = one[mask]
                np.subtract.at(part["normal"], marked, 1)
                np.add.at(part["anomalous"], marked, 1)
                np.add.at(part["weight"], marked, np.rint(_REGION_WEIGHT / sizes).astype(np.int64)[region])
            self.num_images += 1
            self.num_regions += len(sizes)

    def _make_room(self, lowest: int, highest: int, at_least: int = 0) -> None:
        """Widen or move the bins so that keys from `lowest` to `highest` fit beside those already counted."""
        # The width depends on the extreme keys alone, so that the order of images does not matter.
        lowest, highest = min(lowest, self._lowest), max(highest, self._highest)
        shift = max(self._shift, at_least)
        while (highest >> shift) - (lowest >> shift) >= self.num_bins:
            shift += 1
        low, high = lowest >> shift, highest >> shift
        outside = low < self._first or high >= self._first + self.num_bins
        if shift != self._shift or outside:
            first = max(0, low - (self.num_bins - (high - low + 1)) // 2)
            former = self._tables, self._first, self._shift
            self._tables = {name: np.zeros_like(table) for name, table in self._tables.items()}
            self._shift, self._first = shift, first
            self._take(*former)
        self._lowest, self._highest = lowest, highest

    def _take(self, tables: Mapping[str, np.ndarray], first: int, shift: int) -> None:
        """Add counts of bins of 2**`shift` keys, no wider than those here, numbered from `first`."""
        for name, table in tables.items():
            used = np.flatnonzero(table)
            np.add.at(self._tables[name], ((used + first) >> (self._shift - shift)) - self._first, table[used])

    def ranking(self) -> Ranking:
        """Counts at each bin that holds anomalous pixels (the lower edge of a bin stands for its scores)."""
        normal, anomalous, weight = (self._tables[name][::-1] for name in _TABLES)
        used = np.flatnonzero(anomalous)
        alarms = np.cumsum(normal)
        covered = np.cumsum(weight[used])
        lower = ((self.num_bins - 1 - used) + self._first) << self._shift
        lowest, highest = from_keys(np.array([self._lowest, self._highest]))
        return Ranking(
            thresholds=from_keys(np.maximum(lower, self._lowest)),
            hits=np.cumsum(anomalous[used]),
            alarms_above=(alarms - normal)[used],
            alarms=alarms[used],
            num_anomalous=int(anomalous.sum()),
            num_normal=int(alarms[-1]),
            lowest=lowest,
            highest=highest,
            count_alarms=self._count_alarms,
            overlap=covered / covered[-1] if len(used) else None,
            num_regions=self.num_regions,
        )

    def _count_alarms(self, values: np.ndarray) -> np.ndarray:
        """Normal pixels above each value, taken to lie evenly within a bin."""
        keys = to_keys(np.asarray(values, dtype=np.float32)).astype(np.int64)
        bins = np.clip((keys >> self._shift) - self._first, 0, self.num_bins - 1)
        normal = self._tables["normal"]
        above = normal.sum() - np.cumsum(normal)[bins]
        share = 1.0 - ((keys & ((1 << self._shift) - 1)) + 1) / (1 << self._shift)
        return above + share * normal[bins]


def to_keys(scores: np.ndarray) -> np.ndarray:
    """Map float32 scores to uint32 keys in the same order (-0.0 and 0.0 share one)."""
    bits = (scores + np.float32(0.0)).view(np.uint32)
    # Negative numbers: flip all bits; others: set the sign bit.
    flip = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
    return bits ^ flip


def from_keys(keys: np.ndarray) -> np.ndarray:
    """Turn keys back into float32 scores."""
    keys = keys.astype(np.uint32)
    flip = np.where(keys & np.uint32(0x80000000), np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return (keys ^ flip).view(np.float32)
