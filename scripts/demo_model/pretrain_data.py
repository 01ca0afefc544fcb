"""What pretraining of the embedded default reads: its settings, its tokenizer, drawings and captions."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from drawing.synthetic import OBJECTS, TEXTURES, TRAIN_CLASSES, draw_arrays

GENERIC_PAIRS = (
    ("object.", "damaged object."),
    ("an object", "a damaged object"),
    ("a photo of an object", "a photo of a damaged object"),
    ("a flawless object", "a defective object"),
    ("a close-up photo of an intact object", "a close-up photo of a broken object"),
    ("a photo of an object without defect", "a photo of an object with a defect"),
    ("a perfect surface", "a damaged surface"),
    ("a normal image", "an abnormal image"),
)


@dataclass
class PretrainSettings:
    """What decides a run, stored beside the weights.

    Args:
        minutes: wall clock of training, later drawings and judging included; the schedule follows it.
        batch_size: images a step, even; first_batch_size for the first, smaller images.
        image_size, patch_size, depth, width, heads: of the vision tower.
        first_size, first_share: of the images for the first share of the time.
        keep_share: share of the patches that is looked at during that time, those of defects among them.
        start_from: folder of a CLIP or AnomalyCLIP to go on from, with its tokenizer; "" starts afresh.
        generic_share: share of the images whose texts don't name them.
        text_depth, text_width, projection_dim, vocab_size: of the text tower.
        shards: (images, difficulty, seed) of each set of drawings, drawn when its turn comes.
        draw_size (pixels): side of a drawing; zooming takes its room from it.
        learning_rate, weight_decay: of Muon (matrices) and AdamW (the rest).
        pair_weight, late_pair_weight: of the image's pair term, before and after `late_share` of the time.
        decay: of the running mean of the weights, which is what is saved.
    """

    minutes: float = 88.0
    batch_size: int = 40
    first_batch_size: int = 64
    image_size: int = 200
    first_size: int = 200
    first_share: float = 0.6
    keep_share: float = 0.4
    start_from: str = ""
    generic_share: float = 0.8
    patch_size: int = 10
    depth: int = 9
    width: int = 192
    heads: int = 3
    text_depth: int = 4
    text_width: int = 128
    projection_dim: int = 128
    vocab_size: int = 1024
    shards: tuple[tuple[int, float, int], ...] = (
        (14000, 0.4, 61),
        (22000, 0.5, 62),
        (28000, 0.65, 63),
    )
    draw_size: int = 224
    learning_rate: float = 8.0e-4
    weight_decay: float = 0.05
    decay: float = 0.998
    contrastive_weight: float = 0.1
    pair_weight: float = 2.0
    late_pair_weight: float = 2.5
    late_share: float = 0.55
    dense_weight: float = 1.0
    dice_weight: float = 0.5
    positive_weight: float = 3.0
    seed: int = 0


def save_json(values: dict[str, Any], path: Path) -> None:
    """Write a JSON file in one step."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """Train a CLIP-style tokenizer (byte-level BPE, lower case, `</w>`).

    Args:
        captions: what to learn merges from; classes that are held out must not be named.
        vocab_size (`int`): tokens in all, more than 514.
    """
    from collections import Counter

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    plain = CLIPTokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = plain.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 258, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer=trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    # CLIP's order: bytes, bytes that end a word, merges, and the end of text last, so that it is the highest id.
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    known = set(tokens)
    tokens += [t for t, _ in sorted(learned["vocab"].items(), key=lambda item: item[1]) if t not in known]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    doubled = [token for token, count in Counter(tokens).items() if count > 1]
    if doubled:
        raise RuntimeError(f"tokens {doubled} occur twice")
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def class_mixture() -> tuple[str, ...]:
    """Classes of a run in turn: objects twice as often as surfaces and scans, which are learned sooner, and things put
    together at random often enough that what is learned holds for things at large."""
    turns = dict.fromkeys(OBJECTS, 2) | dict.fromkeys(TEXTURES, 1)
    turns |= {"part": 26, "food": 10, "tray": 7, "phantom": 10, "mixed_surface": 12}
    spread = [(k / turns[name], name) for name in TRAIN_CLASSES for k in range(turns[name])]
    return tuple(name for _, name in sorted(spread))


class DrawnImages:
    """Drawings kept in memory-mapped files, shard after shard, drawn when first asked for.

    Args:
        folder: where the files lie; a finished shard is used again.
        settings: shards, draw_size, batch_size.
        num_workers: processes that draw.
    """

    def __init__(self, folder: Path, settings: PretrainSettings, num_workers: int = 2):
        self.folder, self.settings, self.num_workers = Path(folder), settings, num_workers
        self.folder.mkdir(parents=True, exist_ok=True)
        self.loaded: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]] = []

    def load_next(self) -> None:
        """Open the next shard, drawing it if need be."""
        count, difficulty, seed = self.settings.shards[len(self.loaded)]
        stem = self.folder / f"{count}-{difficulty:g}-{seed}-{self.settings.draw_size}"
        texts = stem.with_name(stem.name + ".json")
        if not texts.exists():
            self._draw(stem, count, difficulty, seed)
        images = np.load(stem.with_name(stem.name + ".images.npy"), mmap_mode="r")
        masks = np.load(stem.with_name(stem.name + ".masks.npy"), mmap_mode="r")
        self.loaded.append((images, masks, json.loads(texts.read_text(encoding="utf-8"))))

    def _draw(self, stem: Path, count: int, difficulty: float, seed: int) -> None:
        drawn = draw_arrays(
            count,
            classes=class_mixture(),
            size=self.settings.draw_size,
            seed=seed,
            difficulty=difficulty,
            paired=True,
            num_workers=self.num_workers,
        )
        np.save(stem.with_name(stem.name + ".images.npy"), drawn["images"])
        np.save(stem.with_name(stem.name + ".masks.npy"), drawn["masks"])
        texts = {key: drawn[key] for key in ("normal_captions", "anomalous_captions", "class_names")}
        save_json(texts, stem.with_name(stem.name + ".json"))

    def captions(self) -> list[str]:
        """All captions of the shards opened so far."""
        return [c for *_, t in self.loaded for key in ("normal_captions", "anomalous_captions") for c in t[key]]

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        """Images `(B, 3, S, S)` in [0, 1], masks `(B, 1, S, S)` and caption pairs; scenes come in pairs."""
        # Later shards are harder and are asked for more often; each keeps its share of the batch.
        weights = np.arange(1, len(self.loaded) + 1, dtype=float)
        shares = rng.multinomial(size // 2, weights / weights.sum())
        images, masks, pairs = [], [], []
        for (drawn, truth, texts), share in zip(self.loaded, shares, strict=True):
            scenes = np.sort(rng.choice(len(drawn) // 2, share, replace=False))
            rows = np.stack([2 * scenes, 2 * scenes + 1], axis=1).reshape(-1)
            images.append(drawn[rows])
            masks.append(truth[rows])
            pairs += [(texts["normal_captions"][row], texts["anomalous_captions"][row]) for row in rows]
        pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float() / 255
        return pixels, torch.from_numpy(np.concatenate(masks)).float()[:, None], pairs


def choose_captions(
    pairs: list[tuple[str, str]], generic: Tensor, rng: np.random.Generator, words: list[str]
) -> tuple[list[str], Tensor]:
    """Texts of a batch, each once, and the index of the flawless and of the damaged one for every image `(B, 2)`.

    Args:
        pairs: flawless and damaged caption of each image.
        generic (`Tensor` of shape `(B,)`, bool): images that get a pair of `GENERIC_PAIRS`, or one that looks like
            AnomalyCLIP's prompts, twelve arbitrary words before "object." and "damaged object.".
        words: what these words are taken from.
    """
    common = list(GENERIC_PAIRS)
    common.append(("x " * 12 + "object.", "x " * 12 + "damaged object."))
    for _ in range(2):
        normal, anomalous = (" ".join(rng.choice(words, 12)) for _ in range(2))
        common.append((f"{normal} object.", f"{anomalous} damaged object."))
    picks = rng.integers(0, len(common), len(pairs))
    chosen = [
        common[k] if is_generic else pair for pair, is_generic, k in zip(pairs, generic.tolist(), picks, strict=True)
    ]
    number: dict[str, int] = {}
    index = [[number.setdefault(text, len(number)) for text in pair] for pair in chosen]
    return list(number), torch.tensor(index)
