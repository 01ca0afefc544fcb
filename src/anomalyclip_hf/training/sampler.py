"""Which images make up which step: a pure function of seed, epoch and step, so that any run can be taken up again."""

from __future__ import annotations

import numpy as np
import torch


def epoch_order(labels: np.ndarray, seed: int, epoch: int, balanced: bool = False) -> np.ndarray:
    """Order of images in an epoch.

    Args:
        labels (`np.ndarray` of shape `(N,)`, 0 or 1).
        seed, epoch (`int`, 0 or more).
        balanced (`bool`): half of the N draws are normal and half anomalous; the rarer kind is repeated, the more
            frequent one takes turns over the epochs.

    Returns:
        `np.ndarray` of shape `(N,)`, int64.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    count = len(labels)
    if not balanced:
        return torch.randperm(count, generator=generator).numpy()
    draws = [_cycle(np.flatnonzero(labels == label), count // 2 + (count % 2) * label, generator) for label in (0, 1)]
    mixed = np.concatenate(draws)
    return mixed[torch.randperm(len(mixed), generator=generator).numpy()]


def _cycle(members: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """`count` draws of members: each once before any is drawn again."""
    rounds = -(-count // max(len(members), 1))
    order = [members[torch.randperm(len(members), generator=generator).numpy()] for _ in range(rounds)]
    return np.concatenate(order)[:count] if order else members[:0]


def split_batch(indices: np.ndarray, num_processes: int, process_index: int, parts: int) -> list[np.ndarray]:
    """The parts of a batch that one process works on; some may be empty if the batch is small.

    Args:
        indices (`np.ndarray` of shape `(B,)`): images of the whole batch.
        num_processes, process_index, parts (`int`): `parts` is the number of accumulated parts of each process.
    """
    pieces = np.array_split(indices, num_processes * parts)
    return [pieces[part * num_processes + process_index] for part in range(parts)]
