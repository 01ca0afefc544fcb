"""What can be judged in one run on one backbone: the learned prompts, baselines without learning, and ablations.

Every way has a name: `anomalyclip` is the model as it is, `BASELINES` are CLIP with sentences, and an ablation is
`setting=value`: `dpam=off`, `dpam=qq`, `layers=6,12,18,24`, `layers=paper`, `deep_prompts=off`.

The baselines `clip` and `clip_ac` are the rows CLIP and CLIP-AC of the paper's tables 1 and 2, `prompt_ensemble` puts
state words into templates, without windows. They use CLIP as it is (no refined path, last layer, class token after the
final layer norm) and name the class in their sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration_anomalyclip import PRESETS, feature_layers_of_preset
from ..modeling_anomalyclip import compute_similarity_maps
from ..prompts_anomalyclip import locate_base
from ..scoring.rows import rule_of
from ..tiling_anomalyclip import score_of, score_views

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor
    from ..scoring.rows import PreparedRow

OWN = "anomalyclip"
DPAM_CHOICES = ("off", "vv", "qq", "kk")


@dataclass(frozen=True)
class Method:
    """One way to get scores and maps from a model.

    Args:
        title: how tables call it.
        sentences: None for the learned prompts, else a key of `SENTENCES`.
        dpam: one of `DPAM_CHOICES`, or None for the model's own.
        layers: feature layers counted from 1, or None for the model's own.
        deep_prompts: False leaves the learned deep prompts out.
        plain_clip: True takes CLIP as it is, see above.
    """

    title: str
    sentences: str | None = None
    dpam: str | None = None
    layers: tuple[int, ...] | None = None
    deep_prompts: bool = True
    plain_clip: bool = False


BASELINES: dict[str, Method] = {
    "clip": Method("CLIP, two plain prompts", sentences="plain", plain_clip=True),
    "clip_ac": Method("CLIP-AC, templates", sentences="templates", plain_clip=True),
    "prompt_ensemble": Method("CLIP, state words x templates", sentences="states", plain_clip=True),
}

_ARTICLES = ("a", "the")
_VIEWS = ("", "good ", "bad ", "bright ", "dark ", "close-up ", "cropped ", "blurry ", "low resolution ")
# The article and the object with its state go into the braces.
_TEMPLATES = tuple((f"a {view}photo of {{}}.", article) for view in _VIEWS for article in _ARTICLES)
_STATES = (
    ("{}", "flawless {}", "perfect {}", "intact {}", "{} without a defect", "{} without damage"),
    ("damaged {}", "broken {}", "defective {}", "{} with a defect", "{} with damage", "{} with a flaw"),
)
_TWO_WORDS = (("normal {}",), ("anomalous {}",))
# name -> (templates with their article, states of an object: normal, anomalous)
SENTENCES: dict[str, tuple[tuple[tuple[str, str], ...], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "plain": ((("a photo of {}.", "a"),), _TWO_WORDS),
    "templates": (_TEMPLATES, _TWO_WORDS),
    "states": (_TEMPLATES, _STATES),
}


def resolve_methods(names: Sequence[str], model: AnomalyCLIPModel) -> dict[str, Method]:
    """Turn names into methods, in their order.

    Args:
        names: `"anomalyclip"`, keys of `BASELINES`, and ablations such as `"dpam=off"` or `"layers=6,12"`.
        model ([`AnomalyCLIPModel`]): whose depth says what the presets mean.

    Raises:
        ValueError: a name that is unknown, given twice, or beyond this model.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods={list(names)}, expected at least one, each once")
    known = {OWN: Method("AnomalyCLIP"), **BASELINES}
    methods = {name: known[name] if name in known else _ablation(name, model) for name in names}
    words = [name for name, method in methods.items() if method.sentences or not method.deep_prompts]
    if words and model.config.vision_only:
        raise ValueError(f"{', '.join(words)} need the text tower but this model is vision-only; load the full one")
    return methods


def _ablation(name: str, model: AnomalyCLIPModel) -> Method:
    setting, _, value = name.partition("=")
    depth = model.config.vision_config.num_hidden_layers
    if setting == "dpam" and value in DPAM_CHOICES:
        return Method("without DPAM" if value == "off" else f"DPAM {value[0]}-{value[1]}", dpam=value)
    if setting == "deep_prompts" and value == "off":
        return Method("without deep prompts", deep_prompts=False)
    if setting == "layers" and value:
        if value in PRESETS:
            layers = feature_layers_of_preset(value, depth)
        else:
            layers = sorted({int(part) if part.isdecimal() else 0 for part in value.split(",")})
        if layers[0] < 1 or layers[-1] > depth:
            presets = ", ".join(PRESETS)
            raise ValueError(
                f"{name!r}: expected layers from 1 to {depth} such as layers={depth}, or one of {presets}"
            )
        title = "layer" if len(layers) == 1 else "layers"
        return Method(f"{title} {', '.join(map(str, layers))}", layers=tuple(layers))
    raise ValueError(
        f"{name!r} is no method: expected {OWN}, {', '.join(BASELINES)}, dpam={'|'.join(DPAM_CHOICES)}, "
        "layers=<numbers or preset> or deep_prompts=off"
    )


def all_ablations(model: AnomalyCLIPModel) -> list[str]:
    """Names of the usual ablations of a model, without those that change nothing in it."""
    config = model.config
    own = config.dpam_attention if config.dpam_layers else "off"
    names = [f"dpam={choice}" for choice in DPAM_CHOICES if choice != own and config.dpam_layers]
    depth = config.vision_config.num_hidden_layers
    names += [
        f"layers={preset}"
        for preset in PRESETS
        if feature_layers_of_preset(preset, depth) != sorted(config.feature_layers)
    ]
    if not config.vision_only and len(model.prompt_learner.deep_prompts):
        names.append("deep_prompts=off")
    return names


def parse_ablations(tokens: Sequence[str], model: AnomalyCLIPModel) -> list[str]:
    """Read ablations of a command line: `dpam=off qq kk layers=6,12` is four; nothing means [`all_ablations`].

    A word without `=` belongs to the setting before it, or to `dpam`.
    """
    if not tokens:
        return all_ablations(model)
    names, setting = [], "dpam"
    for token in tokens:
        before, equals, value = token.partition("=")
        setting = before if equals else setting
        values = value if equals else token
        names += [f"{setting}={values}"] if setting == "layers" else [f"{setting}={one}" for one in values.split(",")]
    return list(dict.fromkeys(names))


class MethodScorer:
    """Scores batches by several methods; methods that differ in their texts or layers alone share one vision tower.

    Args:
        model ([`AnomalyCLIPModel`]): on its device, in eval mode.
        names: as in [`resolve_methods`].
        tokenizer: of the backbone, for baselines; looked for beside the model where absent.

    Raises:
        ValueError: an unknown method, one that this model can't do, or no tokenizer where one is needed.
    """

    def __init__(
        self,
        model: AnomalyCLIPModel,
        names: Sequence[str] = (OWN,),
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.model = model
        self.methods = resolve_methods(names, model)
        needs_words = any(method.sentences for method in self.methods.values())
        self.tokenizer = (tokenizer or load_tokenizer(model)) if needs_words else None
        self._texts: dict[tuple, Tensor] = {}
        config = model.config
        self._ways: dict[str, tuple[tuple[int, str], list[int]]] = {}  # method -> refined layers and how; its layers
        self._passes: dict[tuple[int, str], list[int]] = {}  # refined layers and how -> all layers wanted of the pass
        for name, method in self.methods.items():
            refined = 0 if method.plain_clip or method.dpam == "off" else config.dpam_layers
            setting = refined, (refined and method.dpam) or config.dpam_attention
            own = [config.vision_config.num_hidden_layers] if method.plain_clip else config.feature_layers
            self._ways[name] = setting, sorted(method.layers or own)
            self._passes[setting] = sorted({*self._passes.get(setting, []), *self._ways[name][1]})

    @torch.no_grad()
    def score(self, pixel_values: Tensor, class_name: str = "object") -> dict[str, dict[str, Tensor]]:
        """Score a batch of one class.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, H, W)`, float): normalised, on the model's device.
            class_name (`str`): what baselines call the object.

        Returns:
            for each method `logits` `(B, 2)` and `anomaly_maps` `(B, H, W)` in [0, 1], before smoothing, as
            [`AnomalyCLIPModel`] returns them.
        """
        model, config = self.model, self.model.config
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        grid = (size[0] // config.vision_config.patch_size, size[1] // config.vision_config.patch_size)
        passes = {
            setting: model.vision_model(pixel_values, layers, *setting) for setting, layers in self._passes.items()
        }
        results = {}
        for name, (setting, layers) in self._ways.items():
            if name == OWN and model.references is not None:
                results[name] = model(pixel_values, return_dict=True)
                continue
            class_token, features = passes[setting]
            if self.methods[name].plain_clip:
                class_token = model.vision_model.post_layernorm(class_token)
            chosen = [features[self._passes[setting].index(layer)] for layer in layers]
            texts = self.text_embeds(name, class_name)
            with torch.autocast(device_type=pixel_values.device.type, enabled=False):
                image_embeds = model.project(model.visual_projection, class_token)
                patch_embeds = torch.stack([model.project(model.visual_projection, one) for one in chosen], dim=1)
                maps = compute_similarity_maps(patch_embeds, texts, config.temperature, grid, size)
                logits = image_embeds @ texts.T / config.temperature
            results[name] = {"logits": logits, "anomaly_maps": maps[:, :, 1].mean(dim=1)}
        return results

    @torch.no_grad()
    def text_embeds(self, name: str, class_name: str = "object") -> Tensor:
        """Normal and anomalous text embedding `(2, P)` of a method, float32, L2-normalised; made once per class."""
        method, model = self.methods[name], self.model
        key = (method.sentences, method.deep_prompts, class_name if method.sentences else None)
        if key not in self._texts:
            if method.sentences is not None:
                groups = sentences_of(method.sentences, class_name)
                means = [encode_sentences(model, self.tokenizer, group).mean(dim=0) for group in groups]
                self._texts[key] = nn.functional.normalize(torch.stack(means), dim=-1)
            elif method.deep_prompts:
                self._texts[key] = model.get_prompt_embeds()
            else:
                self._texts[key] = model.encode_prompts(deep_prompts=model.prompt_learner.deep_prompts[:0])
        return self._texts[key]


def score_methods(
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    rows: Sequence[PreparedRow],
    sigma: float | None = None,
    map_size: int | str | None = None,
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Score prepared rows of one class by several methods.

    Args:
        scorer, processor: of the model.
        rows: of one class.
        sigma: smoothing in pixels at the model's input size; the processor's own where None.
        map_size: of the maps: None is the model's input, or the image's own where it isn't resized to a square;
            "original" the image's own, a number so many pixels square.

    Returns:
        for each row method to score, and method to map `(H, W)` float32.
    """
    device, class_name, names = scorer.model.device, rows[0].class_name, list(scorer.methods)
    side, rule = map_size if isinstance(map_size, int) else None, rule_of(scorer.model)
    found: list[tuple[dict[str, float], dict[str, np.ndarray]]] = [({}, {}) for _ in rows]
    if processor.resize == "square":
        targets = None if map_size is None else [(side, side) if side else row.size for row in rows]
        outputs = scorer.score(torch.stack([row.pixel_values for row in rows]).to(device), class_name)
        results = [
            processor.post_process_anomaly_detection(outputs[name], targets, sigma, score_rule=rule) for name in names
        ]
    else:
        views = [(row.pixel_values.to(device), row.size, row.tiles) for row in rows]
        targets = [(side, side)] * len(names) if side else None
        by_row = [
            processor.post_process_anomaly_detection(output, targets, sigma=0, score_rule=rule)
            for output in score_views(partial(_stacked, scorer, class_name), processor, views, sigma)
        ]
        results = list(zip(*by_row, strict=True))
    for name, of_rows in zip(names, results, strict=True):
        for (scores, maps), one in zip(found, of_rows, strict=True):
            scores[name], maps[name] = one["score"], one["anomaly_map"].cpu().numpy()
    return found


def _stacked(scorer: MethodScorer, class_name: str, pixel_values: Tensor) -> dict[str, Tensor]:
    """What all methods return, one method after another in a dimension of its own."""
    outputs = list(scorer.score(pixel_values, class_name).values())
    stacked = {key: torch.stack([output[key] for output in outputs]) for key in ("logits", "anomaly_maps")}
    if scorer.model.references is not None:
        stacked["reference_scores"] = torch.stack([score_of(output) for output in outputs])
    return stacked


def sentences_of(kind: str, class_name: str) -> tuple[list[str], list[str]]:
    """Sentences with which a baseline names a class: those of the normal and those of the anomalous state.

    Args:
        kind (`str`): key of `SENTENCES`.
        class_name (`str`): such as `metal_nut`; names without letters become "object".
    """
    templates, states = SENTENCES[kind]
    words = class_name.replace("_", " ").replace("-", " ").strip().lower()
    name = words if any(letter.isalpha() for letter in words) else "object"
    filled: list[list[str]] = [[], []]
    for sentences, group in zip(filled, states, strict=True):
        for template, article in templates:
            for phrase in (state.format(name) for state in group):
                an = "an" if article == "a" and phrase[0] in "aeiou" else article
                sentences.append(template.format(f"{an} {phrase}"))
    return filled[0], filled[1]


@torch.no_grad()
def encode_sentences(model: AnomalyCLIPModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> Tensor:
    """Embed sentences with the backbone's text tower as CLIP does: `(K, P)` float32, L2-normalised.

    Raises:
        ValueError: the tokenizer is not the backbone's.
    """
    text = model.config.text_config
    rows = tokenizer(list(sentences), truncation=True, max_length=text.max_position_embeddings)["input_ids"]
    highest = max(max(row) for row in rows)
    if highest >= text.vocab_size:
        raise ValueError(
            f"the tokenizer gives the id {highest} but the text tower knows {text.vocab_size} tokens: it belongs to "
            "another model; give the backbone's own"
        )
    # What follows the end of text can't be seen from it, so that any id will do as padding.
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    embeds = model.text_model.embeddings.token_embedding(ids.to(model.text_projection.weight.device))
    no_prompts = embeds.new_zeros(0, 0, embeds.shape[-1])
    pooled = model.text_model(embeds, no_prompts, [len(row) - 1 for row in rows])
    return model.project(model.text_projection, pooled)


def load_tokenizer(model: AnomalyCLIPModel) -> PreTrainedTokenizerBase:
    """Find the tokenizer of the backbone: beside the model, or beside its base model.

    Raises:
        ValueError: neither has one.
    """
    from transformers import AutoTokenizer

    base, own = model.config.base_model_name_or_path, model.name_or_path
    places = [own] if own else []
    if base:
        try:
            places.append(locate_base(base, own))
        except (OSError, ValueError):
            places.append(base)
    for place in dict.fromkeys(places):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError, KeyError):
            continue
        # Where files are missing, transformers may make up an empty tokenizer, to which every word is unknown.
        if set(tokenizer("photo", add_special_tokens=False).input_ids) - set(tokenizer.all_special_ids):
            return tokenizer
    raise ValueError(
        f"no tokenizer was found in {' or '.join(places) or 'a model without a name'}, but baselines put words into "
        "sentences: give tokenizer=AutoTokenizer.from_pretrained(<the CLIP checkpoint>), or leave the baselines out"
    )
