"""What can be judged in one run on one backbone: the learned prompts, what they can be helped by, baselines without
learning, and ablations.

Every way has a name: `anomalyclip` is the model as it is, `BASELINES` are CLIP with sentences, and an ablation is
`setting=value`: `dpam=off`, `dpam=qq`, `layers=6,12,18,24`, `layers=paper`, `deep_prompts=off`. So are scores by
another rule, `score=max`, and comparisons with good images drawn from the judged class, `references=4` (see
`evaluator.draw_references`). With `mutual` the images of a class judge one another (see `scoring.mutual`), with
`resize=tile` they are cut.

The baselines `clip` and `clip_ac` are the rows CLIP and CLIP-AC of the paper's tables 1 and 2, `prompt_ensemble` puts
state words into templates, without windows. They use CLIP as it is (no refined path, last layer, class token after the
final layer norm) and name the class in their sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration_anomalyclip import PRESETS, feature_layers_of_preset
from ..modeling_anomalyclip import compute_similarity_maps, split_prompt_embeds
from ..options_anomalyclip import SCORE_RULES
from ..prompts_anomalyclip import locate_base
from ..scoring.rows import rule_of, score_rows
from ..scoring.tiling import score_of
from ..sharing.references import MAX_IMAGES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor
    from ..scoring.rows import PreparedRow
    from ..sharing.references import References

OWN = "anomalyclip"
MUTUAL = "mutual"
HELPS = ("score=max", "score=mean", "references=1", "references=4", "references=16", MUTUAL)
DPAM_CHOICES = ("off", "vv", "qq", "kk")


@dataclass(frozen=True)
class Method:
    """One way to get scores and maps from a model."""

    title: str  # how tables call it
    sentences: str | None = None  # None for the learned prompts, else a key of `SENTENCES`
    dpam: str | None = None  # one of `DPAM_CHOICES`, or None for the model's own
    layers: tuple[int, ...] | None = None  # feature layers counted from 1, or None for the model's own
    deep_prompts: bool = True  # False leaves the learned deep prompts out
    plain_clip: bool = False  # True takes CLIP as it is, see above
    score_rule: str | None = None  # one of `SCORE_RULES`, or None for the configuration's
    references: int = 0  # so many good images of the class itself are compared with, and not judged
    draw: int = 0  # number of this draw of them, from 0
    mutual: bool = False  # the images of a class judge one another
    resize: str | None = None  # "fit" or "tile", where images aren't resized to squares

    @property
    def in_batches(self) -> bool:
        """Whether square images are scored with nothing but themselves."""
        return not (self.mutual or self.references or self.resize)


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
    """Turn names into methods, in their order: `"anomalyclip"`, `"mutual"`, keys of `BASELINES`, and settings such as
    `"dpam=off"`, `"layers=6,12"`, `"score=max"` or `"references=4"`.

    Raises:
        ValueError: a name that is unknown, given twice, or beyond this model; the first needs other images.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods={list(names)}, expected at least one, each once")
    known = {OWN: Method("AnomalyCLIP"), MUTUAL: Method("mutual, transductive", mutual=True), **BASELINES}
    methods = {name: known[name] if name in known else _setting(name, model) for name in names}
    if list(names) != [OWN] and not hasattr(model, "vision_model"):
        raise ValueError(f"methods={list(names)}: an exported model can be judged as it is alone")
    if not methods[names[0]].in_batches:
        raise ValueError(f"{names[0]} can't be the first of the methods, which is the result proper; begin with {OWN}")
    words = [name for name, method in methods.items() if method.sentences or not method.deep_prompts]
    config = model.config
    if words and (not hasattr(model, "text_model") or (config.prompt_type == "free" and "deep_prompts=off" in words)):
        kind = "vision-only" if config.vision_only else f"one of prompt_type={config.prompt_type!r}"
        raise ValueError(f"{', '.join(words)} need the text tower but this model is {kind}; load one that has it")
    if config.prompt_type == "free" and (others := [name for name, method in methods.items() if method.layers]):
        raise ValueError(
            f"{', '.join(others)}: free prompts have vectors for the layers {config.feature_layers} alone"
        )
    return methods


def _setting(name: str, model: AnomalyCLIPModel) -> Method:
    setting, _, value = name.partition("=")
    depth = model.config.vision_config.num_hidden_layers
    if setting == "dpam" and value in DPAM_CHOICES:
        return Method("without DPAM" if value == "off" else f"DPAM {value[0]}-{value[1]}", dpam=value)
    if setting == "score" and value in SCORE_RULES:
        return Method(f"score {value}", score_rule=value)
    if setting == "references" and value.isdecimal() and 1 <= int(value) <= MAX_IMAGES:
        return Method(f"{value} reference{'s' * (int(value) > 1)}, not judged", references=int(value))
    if setting == "resize" and value in ("fit", "tile"):
        return Method("tiles" if value == "tile" else "ratio of sides kept", resize=value)
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
        f"{name!r} is no method: expected {OWN}, {', '.join(BASELINES)}, {MUTUAL}, score={'|'.join(SCORE_RULES)}, "
        f"references=<1 to {MAX_IMAGES}>, resize=fit|tile, dpam={'|'.join(DPAM_CHOICES)}, layers=<numbers or preset>, "
        "deep_prompts=off"
    )


def all_ablations(model: AnomalyCLIPModel) -> list[str]:
    """Names of the usual ablations of a model, without those that change nothing in it."""
    config = model.config
    own = config.dpam_attention if config.dpam_layers else "off"
    names = [f"dpam={choice}" for choice in DPAM_CHOICES if choice != own and config.dpam_layers]
    depth = config.vision_config.num_hidden_layers
    if config.prompt_type == "free":
        return names  # which have no deep prompts, and vectors of their own for each layer
    names += [
        f"layers={preset}"
        for preset in PRESETS
        if feature_layers_of_preset(preset, depth) != sorted(config.feature_layers)
    ]
    if not config.vision_only and len(model.prompt_learner.deep_prompts):
        names.append("deep_prompts=off")
    return names


def parse_methods(tokens: Sequence[str], model: AnomalyCLIPModel) -> list[str]:
    """Read methods of a command line, each once: `score=max mean clip references=1,4 layers=6,12` is six.

    `"baselines"`, `"ablations"` and `"helps"` stand for `BASELINES`, [`all_ablations`] and `HELPS`. Another word
    without `=` belongs to the setting before it, or to `dpam`.
    """
    names: list[str] = []
    groups = {"baselines": list(BASELINES), "ablations": all_ablations(model), "helps": list(HELPS)}
    setting = "dpam"
    for token in tokens:
        before, equals, value = token.partition("=")
        if token in groups or token in (OWN, MUTUAL, *BASELINES):
            names += groups.get(token, [token])
            continue
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
        draws: of references, each a method of its own.

    Attributes:
        reported: name to title and to the methods whose mean is reported.
        methods: what is scored, by name.
        references: of the class that is scored, by method; those without any are passed over.

    Raises:
        ValueError: an unknown method, one that this model can't do, or no tokenizer where one is needed.
    """

    def __init__(
        self,
        model: AnomalyCLIPModel,
        names: Sequence[str] = (OWN,),
        tokenizer: PreTrainedTokenizerBase | None = None,
        draws: int = 1,
    ):
        self.model = model
        self.reported: dict[str, tuple[str, list[str]]] = {}
        self.methods: dict[str, Method] = {}
        for name, method in resolve_methods(names, model).items():
            several = [f"{name}, draw {number + 1}" for number in range(draws)] if method.references else [name]
            self.reported[name] = method.title, several
            self.methods |= {one: replace(method, draw=number) for number, one in enumerate(several)}
        self.references: dict[str, References] = {}
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

    @property
    def scoring(self) -> list[str]:
        """The methods that score batches of the class that is scored."""
        return [name for name, one in self.methods.items() if one.in_batches or name in self.references]

    def references_of(self, name: str) -> References | None:
        """What a method compares images with: the class's own, or those that the model has."""
        method = self.methods[name]
        return self.references.get(name) or (self.model.references if name == OWN or method.score_rule else None)

    @torch.no_grad()
    def score(self, pixel_values: Tensor, class_name: str = "object") -> dict[str, dict[str, Tensor]]:
        """Score a batch of one class.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, H, W)`, float): normalised, on the model's device.
            class_name (`str`): what baselines call the object.

        Returns:
            for each method `logits` `(B, 2)` and `anomaly_maps` `(B, H, W)` in [0, 1], before smoothing, and with
            references `reference_scores` `(B,)`, as [`AnomalyCLIPModel`] returns them.
        """
        model, config = self.model, self.model.config
        if not hasattr(model, "vision_model"):  # an exported one
            output = model(pixel_values, return_dict=True)
            return {OWN: {"logits": output.logits, "anomaly_maps": output.anomaly_maps}}
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        grid = (size[0] // config.vision_config.patch_size, size[1] // config.vision_config.patch_size)
        compared = {name: bank for name in self.scoring if (bank := self.references_of(name)) is not None}
        states: dict = dict.fromkeys(layer for one in compared.values() for layer in one.layers)
        passes = {
            setting: model.vision_model(pixel_values, layers, *setting, kept_states=states)
            for setting, layers in self._passes.items()
        }
        results, alone = {}, {}
        for name in self.scoring:
            method, (setting, layers) = self.methods[name], self._ways[name]
            prompted = replace(method, title="", score_rule=None, references=0, draw=0)
            if prompted not in alone:
                class_token, features = passes[setting]
                if method.plain_clip:
                    class_token = model.vision_model.post_layernorm(class_token)
                chosen = [features[self._passes[setting].index(layer)] for layer in layers]
                texts = self.text_embeds(name, class_name)
                with torch.autocast(device_type=pixel_values.device.type, enabled=False):
                    image_embeds = model.project(model.visual_projection, class_token)
                    patch_embeds = torch.stack([model.project(model.visual_projection, one) for one in chosen], dim=1)
                    of_image, of_patches = split_prompt_embeds(texts)
                    maps = compute_similarity_maps(patch_embeds, of_patches, config.temperature, grid, size)
                    logits = image_embeds @ of_image.T / config.temperature
                alone[prompted] = logits, maps[:, :, 1].mean(dim=1)
            logits, anomaly_maps = alone[prompted]
            results[name] = {"logits": logits, "anomaly_maps": anomaly_maps}
            if name in compared:
                own = logits.softmax(dim=-1)[:, 1]
                _, blended, scores = compared[name].judge(states, grid, anomaly_maps, own)
                results[name] |= {"anomaly_maps": blended, "reference_scores": scores}
        return results

    @torch.no_grad()
    def text_embeds(self, name: str, class_name: str = "object") -> Tensor:
        """Normal and anomalous text embedding `(2, P)` of a method, or free prompts `(1 + M, 2, P)`; float32,
        L2-normalised, made once per class."""
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


def other_processors(scorer: MethodScorer, processor: AnomalyCLIPProcessor) -> dict[str, AnomalyCLIPProcessor]:
    """Of the methods with a `resize` of their own, by name."""
    found = {}
    for name, method in scorer.methods.items():
        if method.resize:
            found[name] = copy(processor)
            found[name].resize, found[name].patch_size = method.resize, scorer.model.config.vision_config.patch_size
    return found


def score_methods(
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    rows: Sequence[PreparedRow],
    sigma: float | None = None,
    map_size: int | str | None = None,
    others: Mapping[str, AnomalyCLIPProcessor] | None = None,
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Score prepared rows of one class by several methods.

    Args:
        sigma: smoothing in pixels at the model's input size; the processor's own where None.
        map_size: of the maps: None is the model's input, or the image's own where it isn't resized to a square;
            "original" the image's own, a number so many pixels square.
        others: of [`other_processors`], as the rows were prepared by.

    Returns:
        for each row method to score, and method to map `(H, W)` float32.
    """
    model, names = scorer.model, scorer.scoring
    rule, sizes = rule_of(model), None
    if map_size is not None:
        sizes = [(map_size, map_size) if isinstance(map_size, int) else row.view.size for row in rows]
    views = [row.view.to(model.device) for row in rows]
    forward = partial(_stacked, scorer, rows[0].class_name)
    rules = [scorer.methods[name].score_rule or rule for name in names]
    by_row = score_rows(forward, processor, views, rules, sigma, sizes)
    sizes = [results[0][1].shape for results in by_row]
    for name, other in (others or {}).items():
        views = [row.others[name].to(model.device) for row in rows]
        viewed = score_rows(partial(model.__call__, return_dict=True), other, views, [rule], sigma, sizes)
        names, by_row = [*names, name], [own + results for own, results in zip(by_row, viewed, strict=True)]
    named = [dict(zip(names, results, strict=True)) for results in by_row]
    return [
        ({name: score for name, (score, _) in own.items()}, {name: one for name, (_, one) in own.items()})
        for own in named
    ]


def _stacked(scorer: MethodScorer, class_name: str, pixel_values: Tensor) -> dict[str, Tensor]:
    """What all methods return, one method after another in a dimension of its own."""
    outputs = list(scorer.score(pixel_values, class_name).values())
    stacked = {key: torch.stack([output[key] for output in outputs]) for key in ("logits", "anomaly_maps")}
    if any("reference_scores" in output for output in outputs):
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
