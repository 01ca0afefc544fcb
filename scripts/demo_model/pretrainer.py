"""Pretraining of the embedded default: a small CLIP that learns from drawn images what a defect looks like.

Three terms: CLIP's contrastive loss on captions; for every image its flawless and its damaged caption as a hard pair;
and the same pair against the patch embeddings of the refined (v-v) path, told by the mask. The vision tower is
AnomalyCLIP's own, so what is trained is what is used.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from anomalyclip_hf.modeling_anomalyclip import AnomalyCLIPVisionModel, resize_positions
from muon import Float32Muon
from pretrain_augment import paste_foreign, relight, warp
from pretrain_data import (
    GENERIC_PAIRS,
    DrawnImages,
    PretrainSettings,
    choose_captions,
    save_json,
    train_tokenizer,
)

TEMPERATURE = 0.07


def normalize(images: Tensor) -> Tensor:
    """CLIP's normalization of images `(B, 3, H, W)` in [0, 1]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images - mean) / std


def build_model(settings: PretrainSettings, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A fresh `CLIPModel` whose vision tower is AnomalyCLIP's (same parameter names, refined path beside)."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings.text_width,
            "intermediate_size": 4 * settings.text_width,
            "num_hidden_layers": settings.text_depth,
            "num_attention_heads": max(1, settings.text_width // 64),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": settings.width,
            "intermediate_size": 4 * settings.width,
            "num_hidden_layers": settings.depth,
            "num_attention_heads": settings.heads,
            "image_size": settings.image_size,
            "patch_size": settings.patch_size,
        },
        projection_dim=settings.projection_dim,
    )
    model = CLIPModel(config)
    vision_config = config.vision_config
    vision_config._attn_implementation = "eager"  # sdpa's backward pass is slow on CPU
    model.vision_model = AnomalyCLIPVisionModel(vision_config)
    return model


def refined_depth(depth: int) -> int:
    """Layers of the refined path: AnomalyCLIP's 19 of 24, scaled."""
    return round(depth * 19 / 24)


def grow_depth(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Give a vision tower more layers without changing what it computes, on the refined path neither.

    A new layer is a copy of the one before it whose two output projections are zero.

    Args:
        weights: a CLIP's, by name.
        depth (`int`): layers wanted, no fewer than there are.

    Returns:
        the weights, layers numbered anew.
    """
    prefix = "vision_model.encoder.layers."
    old = 1 + max(int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix))
    first = old - refined_depth(old)
    sections = (range(first), depth - refined_depth(depth)), (range(first, old), refined_depth(depth))
    order: list[tuple[int, bool]] = []  # the layer it is made of, and whether it is new
    for layers, wanted in sections:
        new = wanted - len(layers)
        if new < 0:
            raise ValueError(
                f"depth={depth}, but the model to go on from has {old} layers: as many or more are expected"
            )
        behind = [math.ceil((k + 1) * len(layers) / (new + 1)) - 1 for k in range(new)]
        order += [(0, True)] * behind.count(-1)  # no layer here to come behind
        for place, layer in enumerate(layers):
            order += [(layer, False)] + [(layer, True)] * behind.count(place)
    grown = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    for number, (layer, is_new) in enumerate(order):
        for name, value in weights.items():
            if name.startswith(f"{prefix}{layer}."):
                rest = name[len(f"{prefix}{layer}.") :]
                silent = is_new and rest.startswith(("self_attn.out_proj.", "mlp.fc2."))
                grown[f"{prefix}{number}.{rest}"] = torch.zeros_like(value) if silent else value.clone()
    return grown


def load_backbone(model: CLIPModel, folder: Path) -> None:
    """Load the weights of a CLIP, or of an AnomalyCLIP without its prompts, strictly.

    Positions are resized, and a model of fewer layers is given more.
    """
    weights = load_file(folder / "model.safetensors")
    weights = {name: value.float() for name, value in weights.items() if not name.startswith("prompt_learner.")}
    name = "vision_model.embeddings.position_embedding.weight"
    if name in weights:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        weights[name] = resize_positions(weights[name], (side, side))
        weights = grow_depth(weights, model.config.vision_config.num_hidden_layers)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or unexpected:
        raise ValueError(f"start_from={str(folder)!r} holds another model: {missing=}, {unexpected=}")


# Losses


def dense_targets(masks: Tensor, patch_size: int) -> Tensor:
    """Target of every patch `(B, N)` in [0, 1]: a patch that is a third covered counts in full."""
    return (nn.functional.avg_pool2d(masks, patch_size) * 3).clamp(max=1).flatten(1)


def dense_losses(
    patch_logits: Tensor, masks: Tensor, settings: PretrainSettings, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the patches, and dice of the map at half the input's size (of the patches if some go).

    Arguments as for [`pretraining_loss`]; patch_logits `(B, K)`, float32.
    """
    targets = dense_targets(masks, settings.patch_size)
    targets = targets if kept is None else targets.gather(1, kept)
    weights = 1 + (settings.positive_weight - 1) * targets
    dense = nn.functional.binary_cross_entropy_with_logits(patch_logits, targets, weights)
    maps, truth = patch_logits.sigmoid(), targets
    if kept is None:
        side = math.isqrt(patch_logits.shape[1])
        maps = maps.view(-1, 1, side, side)
        maps = nn.functional.interpolate(maps, scale_factor=settings.patch_size // 2, mode="bilinear").flatten(1)
        truth = nn.functional.avg_pool2d(masks, 2).flatten(1)
    overlap = 1 - (2 * (maps * truth).sum(1) + 1) / (maps.sum(1) + truth.sum(1) + 1)
    return dense, overlap.mean()


def choose_patches(masks: Tensor, patch_size: int, share: float) -> Tensor:
    """Patches to look at, `(B, K)` int64, rising: those at a defect and around it, and others at random.

    A flawless image keeps what another image's defect would keep, so that what is kept tells nothing.
    """
    side = masks.shape[-1] // patch_size
    near = nn.functional.max_pool2d((nn.functional.avg_pool2d(masks, patch_size) > 0).float(), 3, 1, 1).flatten(1)
    damaged = torch.nonzero(near.sum(1) > 0)[:, 0]
    if len(damaged):
        lent = near[damaged[torch.randint(0, len(damaged), (len(near),))]]
        near = torch.where(near.sum(1, keepdim=True) > 0, near, lent)
    order = torch.rand(len(masks), side * side) + near
    return order.topk(max(1, round(share * side * side)), dim=1).indices.sort(dim=1).values


def pretraining_loss(
    image_embeds: Tensor,
    patch_embeds: Tensor,
    text_embeds: Tensor,
    index: Tensor,
    generic: Tensor,
    masks: Tensor,
    logit_scale: Tensor,
    settings: PretrainSettings,
    pair_weight: float = 1.0,
    kept: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The three terms.

    Args:
        image_embeds `(B, P)`, patch_embeds `(B, K, P)`, text_embeds `(U, P)`: float32, L2-normalised.
        index `(B, 2)`: flawless and damaged text of each image.
        generic `(B,)`: images whose texts don't name them; they take no part in the contrastive term.
        masks `(B, 1, H, W)`, float, 0 or 1.
        kept `(B, K)`, int64: the patches that patch_embeds are of; None = all of them, row by row.
    """
    labels = (masks.flatten(1).sum(1) > 0).long()
    pair = text_embeds[index]
    logits = torch.einsum("bp,bcp->bc", image_embeds, pair) / TEMPERATURE
    pair_loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.02)

    direction = pair[:, 1] - pair[:, 0]
    patch_logits = torch.einsum("bnp,bp->bn", patch_embeds, direction) / TEMPERATURE
    dense, dice = dense_losses(patch_logits, masks, settings, kept)

    named = torch.nonzero(~generic)[:, 0]
    contrastive = text_embeds.new_zeros(())
    if len(named) > 1:
        own = index[named, labels[named]]
        similarity = image_embeds[named] @ text_embeds[own].T * logit_scale.exp().clamp(max=100)
        same = (own[:, None] == own[None]).float()
        both = nn.functional.log_softmax(similarity, 1) + nn.functional.log_softmax(similarity, 0)
        contrastive = -(both * same / same.sum(1, keepdim=True)).sum(1).mean() / 2
    loss = (
        pair_weight * pair_loss
        + settings.dense_weight * dense
        + settings.dice_weight * dice
        + settings.contrastive_weight * contrastive
    )
    parts = {"pair": pair_loss, "dense": dense, "dice": dice, "contrastive": contrastive}
    parts["right"] = (logits.argmax(1) == labels).float().mean()
    return loss, {name: float(value.detach()) for name, value in parts.items()}


# Training


class Pretrainer:
    """One resumable run.

    Args:
        folder: drawings, checkpoint and result (`clip/`) go below it.
        settings: see [`PretrainSettings`].
        judge: called with the folder of the saved CLIP; returns figures to log.
    """

    def __init__(self, folder: Path, settings: PretrainSettings, judge: Callable[[Path], dict] | None = None):
        self.folder, self.settings, self.judge = Path(folder), settings, judge
        self.rng = np.random.default_rng(settings.seed)
        torch.manual_seed(settings.seed)
        self.drawings = DrawnImages(self.folder / "drawings", settings)
        self.drawings.load_next()
        self.tokenizer = self._load_tokenizer()
        self.words = sorted({w for w in " ".join(self.drawings.captions()[:4000]).split() if w.isalpha()})
        self.words = [w for w in self.words if len(self.tokenizer(w).input_ids) == 3]
        self.model = build_model(settings, self.tokenizer)
        if settings.start_from:
            load_backbone(self.model, Path(settings.start_from))
        self.mean = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.optimizers = self._make_optimizers()
        self.step, self.images_seen, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, float]] = []
        self.forward_vision = torch.compile(self._forward_vision, dynamic=False)
        # bfloat16 is emulated, and slow, where the CPU has no instructions for it
        self.autocast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def _load_tokenizer(self) -> CLIPTokenizer:
        """The run's tokenizer, trained if there is none yet: training it again may settle ties otherwise."""
        folder = self.folder / "tokenizer"
        if self.settings.start_from:
            return CLIPTokenizer.from_pretrained(self.settings.start_from)
        if not (folder / "tokenizer.json").exists():
            generic = [text for pair in GENERIC_PAIRS * 200 for text in pair] + ["x"] * 200
            train_tokenizer(self.drawings.captions() + generic, self.settings.vocab_size).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        matrices, rest, plain = [], [], []
        for name, parameter in self.model.named_parameters():
            if ".layers." in name and parameter.ndim == 2:
                matrices.append(parameter)
            elif parameter.ndim >= 2:
                rest.append(parameter)
            else:
                plain.append(parameter)
        lr, decay = self.settings.learning_rate, self.settings.weight_decay
        groups = [{"params": rest, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
        return [
            Float32Muon(matrices, lr=lr, weight_decay=decay),
            torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-8),
        ]

    def _forward_vision(self, pixels: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        depth = self.settings.depth
        tokens = self.model.vision_model.embeddings(pixels)
        if kept is not None:
            patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
        class_token, features = self.model.vision_model.encode(tokens, [depth], refined_depth(depth))
        projection = self.model.visual_projection
        return projection(class_token), projection(features[0])

    @property
    def done(self) -> float:
        """Share of the time that is used up."""
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    def learning_rate(self) -> float:
        """Warm-up over 200 steps, and a cosine down to 1 %."""
        warm = min(1.0, (self.step + 1) / 200)
        return self.settings.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.done)))

    def train_step(self) -> dict[str, float]:
        """One batch, forward and back."""
        settings = self.settings
        first = self.done < settings.first_share
        size = settings.first_size if first else settings.image_size
        count = settings.first_batch_size if first else settings.batch_size
        images, masks, pairs = self.drawings.batch(count, self.rng)
        generic = torch.rand(len(images)) < settings.generic_share
        images, masks = warp(images, masks, size)
        masks = paste_foreign(images, masks, generic & (torch.rand(len(images)) < 0.3))
        images = relight(images, generic)
        texts, index = choose_captions(pairs, generic, self.rng, self.words)
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").input_ids
        kept = choose_patches(masks, settings.patch_size, settings.keep_share) if first else None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            image_embeds, patch_embeds = self.forward_vision(normalize(images), kept)
            pooled = self.model.text_model(input_ids=tokens).pooler_output
            text_embeds = self.model.text_projection(pooled)
        image_embeds, patch_embeds, text_embeds = (
            nn.functional.normalize(embeds.float(), dim=-1) for embeds in (image_embeds, patch_embeds, text_embeds)
        )
        late = self.done >= settings.late_share
        weight = settings.late_pair_weight if late else settings.pair_weight
        loss, parts = pretraining_loss(
            image_embeds,
            patch_embeds,
            text_embeds,
            index,
            generic,
            masks,
            self.model.logit_scale,
            settings,
            weight,
            kept,
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.images_seen += count
        self._update_mean()
        return {"loss": float(loss.detach()), **parts}

    @torch.no_grad()
    def _update_mean(self) -> None:
        decay = min(self.settings.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.mean.values()), list(self.model.parameters()), 1 - decay)

    def train(self, checkpoint_minutes: float = 3.0, judge_minutes: float = 10.0) -> dict[str, Any]:
        """Train until the minutes are used up; returns what `pretraining.json` holds."""
        budget = 60 * self.settings.minutes
        bar = tqdm(total=round(budget), initial=round(self.seconds), unit="s", desc="pretraining", mininterval=5)
        sums: dict[str, float] = {}
        saved, judged, since = self.seconds, self.seconds, (self.step, self.images_seen, self.seconds)
        start = time.monotonic() - self.seconds
        while self.done < 1:
            if self._wants_shard():
                self.drawings.load_next()
            for name, value in self.train_step().items():
                sums[name] = sums.get(name, 0.0) + value
            self.seconds = time.monotonic() - start
            bar.update(round(self.seconds) - bar.n)
            if self.step % 100 == 0:
                report = {name: round(value / (self.step - since[0]), 3) for name, value in sums.items()}
                speed = (self.images_seen - since[1]) / (self.seconds - since[2])
                sums, since = {}, (self.step, self.images_seen, self.seconds)
                bar.write(f"step {self.step} {self.seconds / 60:.1f} min {speed:.0f} images/s {report}")
            if self.seconds - saved > 60 * checkpoint_minutes:
                saved = self.seconds
                self.save_checkpoint()
            if self.judge and self.seconds - judged > 60 * judge_minutes:
                judged = self.seconds
                self.save_clip()
                self.history.append({"minutes": round(self.seconds / 60, 1), **self.judge(self.folder / "clip")})
                bar.write(json.dumps(self.history[-1]))
        bar.close()
        self.save_checkpoint()
        return self.save_clip()

    def _wants_shard(self) -> bool:
        """Shards join one after the other over the first half of the time."""
        opened, total = len(self.drawings.loaded), len(self.settings.shards)
        return opened < total and self.done >= 0.5 * opened / total

    # Saving

    def save_clip(self) -> dict[str, Any]:
        """Write the running mean of the weights as a plain CLIP checkpoint (float16 on disk, float32 in use)."""
        from transformers import CLIPImageProcessorPil

        folder = self.folder / "clip"
        folder.mkdir(parents=True, exist_ok=True)
        size = self.settings.image_size
        weights = {name: value.detach().half().contiguous() for name, value in self.mean.items()}
        save_file(weights, folder / "model.safetensors.tmp", metadata={"format": "pt"})
        os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
        config = self.model.config
        config.architectures, config.dtype = ["CLIPModel"], "float32"
        config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        image_processor = CLIPImageProcessorPil(
            size={"height": size, "width": size}, crop_size={"height": size, "width": size}, do_center_crop=False
        )
        image_processor.save_pretrained(folder)
        info = {
            "settings": asdict(self.settings),
            "parameters": sum(v.numel() for v in self.mean.values()),
            "steps": self.step,
            "images_seen": self.images_seen,
            "training_minutes": round(self.seconds / 60, 1),
            "drawings": sum(len(images) for images, *_ in self.drawings.loaded),
            "history": self.history,
        }
        before = Path(self.settings.start_from, "pretraining.json")
        if self.settings.start_from and before.is_file():
            earlier = json.loads(before.read_text(encoding="utf-8"))
            info["earlier_run"] = {name: value for name, value in earlier.items() if name != "prompts"}
        save_json(info, folder / "pretraining.json")
        return info

    def save_checkpoint(self) -> None:
        """Write everything that `resume` needs, in one step."""
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors |= {f"mean.{n}": p.clone() for n, p in self.mean.items()}
        for number, optimizer in enumerate(self.optimizers):
            for key, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{key}.{n}": v.clone() for n, v in state.items()}
        tensors["torch_rng"] = torch.get_rng_state()
        state = {"step": self.step, "images_seen": self.images_seen, "seconds": self.seconds, "history": self.history}
        state |= {"shards": len(self.drawings.loaded), "numpy_rng": self.rng.bit_generator.state}
        path = self.folder / "checkpoint.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, f"{path}.tmp", {"state": json.dumps(state)})
        os.replace(f"{path}.tmp", path)

    def resume(self) -> bool:
        """Go on from the last checkpoint in the folder, if there is one."""
        from safetensors import safe_open

        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        with safe_open(path, "pt") as opened:
            state = json.loads(opened.metadata()["state"])
        tensors = load_file(path)
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.mean[name].copy_(tensors[f"mean.{name}"])
        for number, optimizer in enumerate(self.optimizers):
            saved = optimizer.state_dict()
            for name, value in tensors.items():
                if name.startswith(f"optimizer.{number}."):
                    _, _, key, field = name.split(".")
                    saved["state"].setdefault(int(key), {})[field] = value
            optimizer.load_state_dict(saved)
        while len(self.drawings.loaded) < state["shards"]:
            self.drawings.load_next()
        self.step, self.images_seen = state["step"], state["images_seen"]
        self.seconds, self.history = state["seconds"], state["history"]
        self.rng.bit_generator.state = state["numpy_rng"]
        torch.set_rng_state(tensors["torch_rng"])
        return True
