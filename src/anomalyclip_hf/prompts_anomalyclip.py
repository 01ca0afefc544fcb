"""Prompts alone, what adapters are to PEFT: kept, saved, loaded, shared, swapped and folded."""

import base64
import copy
import importlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .configuration_anomalyclip import AnomalyCLIPConfig
from .image_processing_anomalyclip import AnomalyCLIPImageProcessor

logger = logging.get_logger(__name__)

PROMPTS_NAME = "prompts.safetensors"
WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
WEIGHTS_PATTERNS = ("model.safetensors*", "model-*-of-*.safetensors", PROMPTS_NAME)
PROMPT_KEYS = ("context", "deep_prompts")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Configuration that goes with prompts when they move to another copy of their backbone.
PROMPT_FIELDS = (
    *("prompt_length", "deep_prompt_depth", "deep_prompt_length", "prompt_token_ids"),
    *("dpam_layers", "dpam_attention", "feature_layers", "temperature"),
    *("image_size", "image_threshold", "pixel_threshold", "score_rule", "thresholds_for", "reference_layers"),
)
# Sizes that two backbones must share.
TOWER_FIELDS = {
    "text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    "vision_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"),
}
# Backbones that lie in an installed package: portable name -> (package, folder in it).
KNOWN_BASES = {"anomalyclip_hf/demo": ("anomalyclip_hf", "assets/demo")}
# What a checkpoint that brings its code says of it.
AUTO_MAP = {
    "AutoConfig": "configuration_anomalyclip.AnomalyCLIPConfig",
    "AutoModel": "modeling_anomalyclip.AnomalyCLIPModel",
    "AutoImageProcessor": "image_processing_anomalyclip.AnomalyCLIPImageProcessor",
    "AutoProcessor": "image_processing_anomalyclip.AnomalyCLIPImageProcessor",
}
CUSTOM_PIPELINES = {
    "zero-shot-anomaly-detection": {
        "impl": "pipeline_anomalyclip.ZeroShotAnomalyDetectionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}


@dataclass
class PromptSet:
    """Learned prompts with what they need to be used again.

    Args:
        context (`Tensor` of shape `(2, E, d)`, float32): learned words; [0] normal, [1] anomalous.
        deep_prompts (`Tensor` of shape `(depth - 1, T, d)`, float32).
        config ([`AnomalyCLIPConfig`]): what they were learned with, the sizes of the backbone included.
        fingerprint (`Tensor` of shape `(n,)`, float32, *optional*): of the backbone; None = not known.
        source (`str`): where they came from, for messages.
    """

    context: Tensor
    deep_prompts: Tensor
    config: AnomalyCLIPConfig
    fingerprint: Tensor | None = None
    source: str = "memory"


# The backbone that prompts belong to


def portable_base_name(name: str) -> str:
    """Name of a backbone that is written beside prompts: that of a known base, else a repository or a full path."""
    for known in KNOWN_BASES:
        folder = _folder_of_known_base(known)
        if name == known or (folder is not None and os.path.realpath(name) == os.path.realpath(folder)):
            return known
    return os.path.abspath(name) if os.path.isdir(name) else name


def _folder_of_known_base(name: str) -> str | None:
    package, folder = KNOWN_BASES[name]
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return str(Path(next(iter(places)), folder)) if places else None


def locate_base(name: str | None, source: str) -> str:
    """Where the backbone named in a file of prompts lies: a folder or a repository.

    Args:
        name (`str`, *optional*): `base_model_name_or_path` as stored.
        source (`str`): where the prompts came from. Only prompts of a local folder may name a local folder.

    Raises:
        ValueError: if the name is missing or is neither a repository's nor a local folder's.
        OSError: if it is a known base of a package that isn't installed, or a folder that isn't there.
    """
    advice = "give base_model_name_or_path=... to from_pretrained to name the backbone yourself"
    if not name:
        raise ValueError(f"{source} holds prompts alone but its config.json lacks base_model_name_or_path; {advice}")
    if name in KNOWN_BASES:
        folder = _folder_of_known_base(name)
        if folder is None:
            package = KNOWN_BASES[name][0]
            raise OSError(
                f"the prompts of {source} belong to {name!r}, which comes with the package {package}, and that isn't "
                f"installed: pip install {package}, or {advice}"
            )
        return folder
    if os.path.isabs(name) and ".." not in Path(name).parts:
        if not os.path.isdir(source):
            raise ValueError(f"{source} names the local folder {name!r} as base_model_name_or_path; {advice}")
        if not os.path.isdir(name):
            raise OSError(f"the base model of {source} is the folder {name!r}, which isn't there; {advice}")
        return name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{source} has base_model_name_or_path={name!r}, expected a repository such as "
            f"'openai/clip-vit-large-patch14-336' or an absolute folder; {advice}"
        ) from error
    return name


def backbone_fingerprint(model: nn.Module) -> Tensor | None:
    """One number of every weight matrix of the backbone, to tell one backbone from another of the same size.

    Returns:
        `Tensor` of shape `(n,)`, float32, on the CPU; None if the weights are quantised or not in memory.
    """
    samples = []
    for name, weight in sorted(model.named_parameters()):
        if name.startswith("prompt_learner.") or weight.ndim < 2:
            continue
        if weight.is_meta or type(weight) is not nn.Parameter or not weight.is_floating_point():
            return None
        samples.append(weight.detach()[(weight.shape[0] // 2, *[0] * (weight.ndim - 1))].float())
    return torch.stack([sample.to(samples[0].device) for sample in samples]).cpu()


def check_same_sizes(prompts: AnomalyCLIPConfig, base: AnomalyCLIPConfig, source: str) -> None:
    """Compare the sizes of the backbone that prompts were learned on with those of another.

    Raises:
        ValueError: naming both backbones and the sizes that differ.
    """
    pairs = [("projection_dim", prompts.projection_dim, base.projection_dim)]
    for tower, fields in TOWER_FIELDS.items():
        ours, theirs = getattr(prompts, tower), getattr(base, tower)
        pairs += [(f"{tower}.{field}", getattr(ours, field), getattr(theirs, field)) for field in fields]
    if differing := [f"{name} is {a} there and {b} here" for name, a, b in pairs if a != b]:
        raise ValueError(_wrong_backbone(prompts, base, source) + "; ".join(differing))


def check_same_backbone(prompts: PromptSet, model: PreTrainedModel) -> None:
    """Refuse prompts that were learned on another backbone, by its sizes and by samples of its weights.

    Weights are compared within the rounding of half precision, so that the backbone's dtype does not matter.

    Raises:
        ValueError: naming both backbones.
    """
    config: Any = model.config
    refuse_vision_only(config, "it has no text tower to put prompts on")
    check_same_sizes(prompts.config, config, prompts.source)
    here, there = backbone_fingerprint(model), prompts.fingerprint
    if there is None or here is None:
        why = "can't be compared by fingerprint with a backbone that is quantised or not in memory"
        why = "carry no fingerprint of their backbone" if there is None else why
        logger.warning(
            f"the prompts of {prompts.source} {why}: whether this model's weights are those they were learned on "
            "isn't known. On others their scores mean nothing; check the base model, and save the prompts anew"
        )
    elif here.shape != there.shape or not torch.allclose(here, there, rtol=2**-7, atol=1e-6):
        raise ValueError(_wrong_backbone(prompts.config, config, prompts.source) + "the weights differ")


def _wrong_backbone(prompts: AnomalyCLIPConfig, base: AnomalyCLIPConfig, source: str) -> str:
    theirs, ours = (config.base_model_name_or_path or config.name_or_path or "?" for config in (prompts, base))
    return (
        f"the prompts of {source} were learned on the backbone {theirs!r}, but this one is {ours!r}; load the right "
        "one with AnomalyCLIPModel.from_pretrained(<the prompts>). What differs: "
    )


def refuse_vision_only(config: AnomalyCLIPConfig, why: str) -> None:
    """Raise a ValueError if a model's prompts are folded."""
    if config.vision_only:
        raise ValueError(f"this model is vision-only: {why}; load the full one")


# Files


def read_prompts(source: str | os.PathLike, config: AnomalyCLIPConfig | None = None, **hub: Any) -> PromptSet:
    """Read prompts from a folder or repository that holds prompts alone or a full AnomalyCLIP.

    Args:
        source (`str` or `os.PathLike`): folder or Hub repository.
        config ([`AnomalyCLIPConfig`], *optional*): instead of the stored one.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`.

    Raises:
        ValueError: if a part is missing, truncated, of another shape or dtype, or not finite; it is named.
        OSError: if a file can't be found.
    """
    name = os.fspath(source)
    if config is None:
        config = prompts_config(AnomalyCLIPConfig.get_config_dict(name, **hub)[0], name)
    file = PROMPTS_NAME if config.prompts_only else _file_of_weights(name, hub)
    where, wanted = f"{file} of {name}", {f"prompt_learner.{key}" for key in PROMPT_KEYS}
    try:
        with safe_open(cached_file(name, file, **hub), framework="pt") as stored:
            keys, metadata = set(stored.keys()), stored.metadata() or {}
            if missing := sorted(wanted - keys):
                raise ValueError(f"{where} lacks {', '.join(missing)}; it holds {sorted(keys)[:4]}")
            if config.prompts_only and keys != wanted:
                raise ValueError(f"{where} holds {sorted(keys - wanted)[:4]}, expected {sorted(wanted)} alone")
            for key, expected in _shapes(config).items():
                if (shape := tuple(stored.get_slice(f"prompt_learner.{key}").get_shape())) != expected:
                    raise ValueError(
                        f"{where}: prompt_learner.{key} has shape {shape} but the configuration says {expected} "
                        f"(prompt_length={config.prompt_length}, deep_prompt_depth={config.deep_prompt_depth}, "
                        f"deep_prompt_length={config.deep_prompt_length}, width {config.text_config.hidden_size})"
                    )
            values = {key: stored.get_tensor(f"prompt_learner.{key}") for key in PROMPT_KEYS}
    except SafetensorError as error:
        raise ValueError(f"{where} is truncated or no safetensors file ({error}); fetch it again") from error
    for key, value in values.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{where}: prompt_learner.{key} has dtype {value.dtype} or values that are not finite")
    fingerprint = None
    if "backbone" in metadata:
        try:
            content = base64.b64decode(metadata["backbone"], validate=True)
            fingerprint = torch.from_numpy(np.frombuffer(content, "<f4").copy())
        except ValueError as error:
            raise ValueError(f"{where} has a damaged fingerprint of its backbone ({error}); fetch it again") from error
    return PromptSet(
        **{key: value.float() for key, value in values.items()}, config=config, fingerprint=fingerprint, source=name
    )


def _shapes(config: AnomalyCLIPConfig) -> dict[str, tuple[int, int, int]]:
    width = config.text_config.hidden_size
    return {
        "context": (2, config.prompt_length, width),
        "deep_prompts": (config.deep_prompt_depth - 1, config.deep_prompt_length, width),
    }


def prompts_config(raw: dict[str, Any], name: str, **overrides: Any) -> AnomalyCLIPConfig:
    """Configuration of prompts from the contents of a config.json, with what must not be made up.

    Raises:
        ValueError: if it is no AnomalyCLIP's, a vision-only one's, or lacks the sizes of the backbone.
    """
    if raw.get("model_type") != "anomalyclip":
        raise ValueError(f"config.json of {name} has model_type={raw.get('model_type')!r}, expected 'anomalyclip'")
    if raw.get("vision_only"):
        raise ValueError(f"{name} is vision-only: its prompts are folded and can't be taken out; use the full one")
    if missing := [key for key in ("text_config", "vision_config", "projection_dim") if key not in raw]:
        raise ValueError(f"config.json of {name} lacks {', '.join(missing)}; save the prompts again with save_prompts")
    return AnomalyCLIPConfig.from_dict(raw, **overrides)


def _file_of_weights(name: str, hub: dict[str, Any]) -> str:
    index = cached_file(name, WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if index is None:
        return WEIGHTS_NAME
    shards = json.loads(Path(index).read_text(encoding="utf-8")).get("weight_map", {})
    file, *others = {shards.get(f"prompt_learner.{key}") for key in PROMPT_KEYS}
    if others or not isinstance(file, str) or os.path.basename(file) != file:
        raise ValueError(f"{WEIGHTS_INDEX_NAME} of {name} does not name one file that holds the prompts")
    return file


def write_prompts(prompts: PromptSet, path: str | os.PathLike) -> None:
    """Write the two tensors and the backbone's fingerprint; the same prompts make the same bytes."""
    tensors = {
        f"prompt_learner.{key}": getattr(prompts, key).detach().cpu().float().contiguous() for key in PROMPT_KEYS
    }
    metadata = {"format": "pt"}
    if prompts.fingerprint is not None:
        metadata["backbone"] = base64.b64encode(prompts.fingerprint.numpy().astype("<f4").tobytes()).decode()
    data = save(tensors, metadata=metadata)
    # safetensors writes the head, which is JSON, in any order.
    size = int.from_bytes(data[:8], "little")
    head = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with whole_folder(Path(path).parent) as stage:
        (stage / Path(path).name).write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])


def write_checkpoint(
    folder: Path, prompts: PromptSet, processor: AnomalyCLIPImageProcessor, model_class: type
) -> None:
    """Write prompts as a checkpoint of their own: the file of [`write_prompts`], config.json and the processor's."""
    write_prompts(prompts, folder / PROMPTS_NAME)
    config = copy.deepcopy(prompts.config)
    config.prompts_only, config.architectures, config.dtype = True, [model_class.__name__], None
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


@contextmanager
def whole_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A hidden folder inside `folder`; when all went well, its files take their places, config.json last.

    Weights of an older checkpoint that the new one does not replace are deleted.

    Args:
        folder (`str` or `os.PathLike`): made if absent.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to save into")
    existed, stage = folder.is_dir(), folder / f".saving-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        yield stage
        files = sorted(stage.iterdir(), key=lambda path: (path.name == "config.json", path.name))
        names = {path.name for path in files}
        if "config.json" in names and any(path.match(one) for path in files for one in WEIGHTS_PATTERNS):
            for old in [old for pattern in WEIGHTS_PATTERNS for old in folder.glob(pattern)]:
                if old.name not in names:
                    old.unlink(missing_ok=True)
        for path in files:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def refuse_full_checkpoint(folder: str | os.PathLike) -> None:
    """Keep prompts from being saved over a full checkpoint, whose config.json they would replace.

    Raises:
        ValueError: naming the file found.
    """
    for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        if Path(folder, name).exists():
            raise ValueError(f"{folder} holds a full checkpoint ({name}); save the prompts to another folder")


def add_code(folder: Path, model_class: type) -> None:
    """Copy the code of a model beside its config.json, for `trust_remote_code=True`, and name its classes there.

    Args:
        folder (`Path`): a saved checkpoint.
        model_class (`type`): its module, those that it imports and the pipeline's are copied.
    """
    custom_object_save(model_class, folder)
    pipeline = Path(__file__).with_name("pipeline_anomalyclip.py")
    fields: dict[str, dict] = {"auto_map": AUTO_MAP}
    if pipeline.is_file():  # a checkpoint that brought its code itself may have brought no pipeline
        shutil.copy(pipeline, folder)
        fields["custom_pipelines"] = CUSTOM_PIPELINES
    images = {"auto_map": {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}}
    for name, added in (("config.json", fields), ("preprocessor_config.json", images)):
        if (path := folder / name).is_file():
            stored = {**json.loads(path.read_text(encoding="utf-8")), **added}
            path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def add_card(
    folder: Path, model: PreTrainedModel, card: bool | dict | str | ModelCard = True, tags=None, **facts: Any
) -> None:
    """Write README.md: the card given, or one that the package makes, where it is installed.

    Args:
        folder (`Path`): a saved checkpoint.
        card (`bool`, `dict`, `str` or `ModelCard`): False = none; a dict is passed on to `make_model_card`.
        tags (`str` or `list[str]`, *optional*): added to the card's metadata.
        **facts: what `make_model_card` takes, beneath the card's own.
    """
    if card is True or isinstance(card, dict):
        try:
            maker = importlib.import_module("anomalyclip_hf.evaluation.model_card")
            facts["with_code"] = (folder / "modeling_anomalyclip.py").is_file()
            card = maker.make_model_card(model, **{**facts, **(card if isinstance(card, dict) else {})})
        except ModuleNotFoundError:
            card = False
    if tags:
        empty = ModelCard.from_template(ModelCardData(), template_str="---\n{{ card_data }}\n---\n")
        card = ModelCard(str(card or empty))
        data: Any = card.data
        data.tags = list(dict.fromkeys([*(data.tags or []), *([tags] if isinstance(tags, str) else tags)]))
    if card:
        (folder / "README.md").write_text(str(card), encoding="utf-8")


def upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
) -> CommitInfo | dict[str, int]:
    """Send a folder to the Hub in one commit; weights there that are no longer part of it are deleted.

    Args:
        folder (`Path`): everything in it is sent.
        repo_id (`str`): made if absent.
        commit_message, commit_description, private, token, revision, create_pr: as in every `push_to_hub`.
        dry_run (`bool`): send nothing, and make no contact.

    Returns:
        `huggingface_hub.CommitInfo`; with `dry_run`, what would be sent: `{path: bytes}`.

    Raises:
        ConnectionError: if the Hub can't be reached. What it refuses is the Hub client's own error.
    """
    if dry_run:
        return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=list(WEIGHTS_PATTERNS),
        )
    except (OSError, ValueError):
        raise
    except Exception as error:  # the HTTP client's own, which names neither the repository nor the address
        raise ConnectionError(f"can't push to {repo_id}: the connection to {api.endpoint} failed ({error})") from error


class PromptsMixin(PreTrainedModel if TYPE_CHECKING else object):  # type: ignore[misc]
    """What a model can do with its prompts, and how it is saved and shared."""

    def get_prompts(self, base_model_name_or_path=None, base_model_revision=None) -> PromptSet:
        """A copy of the current prompts, which later training or loading leaves as it is.

        Args:
            base_model_name_or_path, base_model_revision (`str`, *optional*): name the backbone otherwise than the
                configuration does.

        Raises:
            ValueError: if the model is vision-only.
        """
        refuse_vision_only(self.config, "it has no prompts to take out")
        self._hold_prompts()
        config = copy.deepcopy(self.config)
        loaded_from, commit = getattr(self, "_loaded_from", (None, None))
        if base_model_name_or_path is not None:
            config.base_model_name_or_path = portable_base_name(os.fspath(base_model_name_or_path))
            config.base_model_revision = base_model_revision
        elif config.base_model_name_or_path is None or loaded_from in KNOWN_BASES:
            config.base_model_name_or_path, config.base_model_revision = loaded_from, commit
        else:
            config.base_model_name_or_path = portable_base_name(config.base_model_name_or_path)
        learned = {key: getattr(self.prompt_learner, key).detach().clone() for key in PROMPT_KEYS}
        return PromptSet(**learned, config=config, fingerprint=backbone_fingerprint(self))

    def load_prompts(self, source, **hub):
        """Put other prompts on this backbone, with the settings that they were learned with.

        Args:
            source (`str`, `os.PathLike` or [`PromptSet`]): folder or Hub repository of prompts alone or of a full
                AnomalyCLIP; or what [`~AnomalyCLIPModel.get_prompts`] returned.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            ValueError: if a part is missing or damaged, or the prompts belong to another backbone (both are named);
                the model is then unchanged.
        """
        prompts = source if isinstance(source, PromptSet) else read_prompts(source, **hub)
        check_same_backbone(prompts, self)
        self._put(prompts)
        return self

    def add_prompts(self, name: str, source=None, **hub) -> None:
        """Keep prompts in memory under a name, to be put on the backbone by [`~AnomalyCLIPModel.set_prompts`].

        Args:
            name (`str`): a name of your own; an older set of that name is replaced.
            source (*optional*): as in [`~AnomalyCLIPModel.load_prompts`]; the current prompts if absent.
        """
        source = self.get_prompts() if source is None else source
        prompts = source if isinstance(source, PromptSet) else read_prompts(source, **hub)
        check_same_backbone(prompts, self)
        self.__dict__.setdefault("_prompt_sets", {})[name] = prompts

    def set_prompts(self, name: str) -> None:
        """Put kept prompts on the backbone; takes about a millisecond.

        Raises:
            KeyError: if no prompts of that name were added.
        """
        if name not in self.prompt_names:
            raise KeyError(
                f"no prompts named {name!r}, there are {self.prompt_names}; add them with add_prompts first"
            )
        self._put(self.__dict__["_prompt_sets"][name])

    @property
    def prompt_names(self) -> list[str]:
        """Names of the prompts kept by [`~AnomalyCLIPModel.add_prompts`]."""
        return list(self.__dict__.get("_prompt_sets", {}))

    @torch.no_grad()
    def _hold_prompts(self) -> None:
        """Take prompts that accelerate offloaded back into memory for good: they are small, and read and written."""
        learner = getattr(self, "prompt_learner", None)
        if learner is None or not any(parameter.is_meta for parameter in learner.parameters()):
            return
        stored = getattr(getattr(learner, "_hf_hook", None), "weights_map", None) or {}
        for key in PROMPT_KEYS:
            old = getattr(learner, key)
            setattr(learner, key, nn.Parameter(torch.empty(old.shape), requires_grad=old.requires_grad))
        self._init_weights(learner)  # what no file held is drawn afresh, as it is without offloading
        for key in PROMPT_KEYS:
            with suppress(KeyError):
                getattr(learner, key).copy_(stored[key])
        importlib.import_module("accelerate.hooks").remove_hook_from_module(learner)

    @torch.no_grad()
    def _put(self, prompts: PromptSet) -> None:
        self.prompts_source = prompts.source  # for records of what was judged
        self._hold_prompts()
        for key in PROMPT_KEYS:
            old, new = getattr(self.prompt_learner, key), getattr(prompts, key)
            if old.shape == new.shape:
                old.copy_(new)
            else:
                new = new.to(device=old.device, dtype=torch.float32, copy=True)
                setattr(self.prompt_learner, key, nn.Parameter(new, requires_grad=old.requires_grad))
        for field in PROMPT_FIELDS:
            setattr(self.config, field, copy.deepcopy(getattr(prompts.config, field)))

    @torch.no_grad()
    def to_vision_only(self):
        """A copy with the prompts folded into two text embeddings and no text tower; it can't be trained.

        Returns:
            [`AnomalyCLIPModel`] that gives the same results; save and load it as any other.
        """
        refuse_vision_only(self.config, "there is nothing to fold")
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError("some weights are offloaded, so no copy can be made; load the model without device_map")
        config = AnomalyCLIPConfig.from_dict({**self.config.to_dict(), "vision_only": True})
        model = type(self)._from_config(config, attn_implementation=self.config._attn_implementation)
        model = model.to(device=self.device, dtype=self.dtype)
        weights = {key: value for key, value in self.state_dict().items() if key in model.state_dict()}
        model.load_state_dict({**weights, "folded_text_embeds": self.get_prompt_embeds()})
        for source in ("_loaded_from", "_processor_source"):
            if hasattr(self, source):
                setattr(model, source, getattr(self, source))
        return model.train(self.training)

    def default_processor(self) -> AnomalyCLIPImageProcessor:
        """The processor stored with the checkpoint that this model came from, for the model's input size.

        Raises:
            OSError, ValueError: if the one stored can't be read, or makes images that are no squares.
        """
        size = {"height": self.config.image_size, "width": self.config.image_size}
        name, hub = getattr(self, "_processor_source", (None, {}))
        if name:
            known = locate_base(name, ".") if name in KNOWN_BASES else name
            stored = AnomalyCLIPImageProcessor.from_pretrained(known, **hub)
            if (own := stored.size).height is None or own.height != own.width:
                raise ValueError(f"the processor of {name} has size={dict(own)}, expected equal height and width")
            return AnomalyCLIPImageProcessor.from_dict({**stored.to_dict(), "size": size})
        try:
            base = locate_base(self.config.base_model_name_or_path, ".")
            return AnomalyCLIPImageProcessor.from_pretrained(base, local_files_only=True, size=size)
        except (OSError, ValueError):  # no base model, or it is not in the cache
            return AnomalyCLIPImageProcessor(size=size)

    def save_prompts(
        self,
        save_directory,
        processor=None,
        base_model_name_or_path=None,
        base_model_revision=None,
        card=True,
        save_code=False,
        tags=None,
        repo_id=None,
    ) -> None:
        """Save the prompts alone: 172 KB for ViT-L, loadable by `from_pretrained` of model, processor and pipeline.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if absent; each file appears complete or not at all.
            processor ([`AnomalyCLIPImageProcessor`], *optional*): the model's own if absent.
            base_model_name_or_path, base_model_revision (`str`, *optional*): name the backbone otherwise than the
                configuration does.
            card (`bool`, `dict`, `str` or `ModelCard`, defaults to `True`): the README.md to write. False = none; a
                dict, such as `{"training": ..., "results": ...}`, is passed to `make_model_card`.
            save_code (`bool`, defaults to `False`): add the code that `trust_remote_code=True` runs.
            tags (`str` or `list[str]`, *optional*): added to the card's.
            repo_id (`str`, *optional*): what the card calls the repository; the folder's name if absent.

        Raises:
            ValueError: if nothing names the backbone, the folder holds a full checkpoint, or the model is vision-only.
        """
        prompts = self.get_prompts(base_model_name_or_path, base_model_revision)
        base = prompts.config.base_model_name_or_path
        if base is None:
            raise ValueError(
                "nothing says which backbone these prompts belong to, and alone they are of no use; give "
                "base_model_name_or_path=... (a Hub repository or a folder), or use save_pretrained"
            )
        refuse_full_checkpoint(save_directory)
        with whole_folder(save_directory) as stage:
            write_checkpoint(stage, prompts, processor or self.default_processor(), type(self))
            self._add_code(stage, save_code)
            facts = {
                "prompts_file": stage / PROMPTS_NAME,
                "base": base,
                "repo_id": repo_id or os.fspath(save_directory),
            }
            add_card(stage, self, card, tags, **facts)

    def push_prompts_to_hub(
        self,
        repo_id: str,
        *,
        processor=None,
        base_model_name_or_path=None,
        base_model_revision=None,
        card=True,
        save_code=False,
        tags=None,
        commit_message="Upload prompts",
        **hub,
    ):
        """Share the prompts alone on the Hub, in one commit.

        Args:
            repo_id (`str`): such as `"me/anomalyclip-prompts"`; made if absent.
            processor, base_model_name_or_path, base_model_revision, card, save_code, tags: as in
                [`~AnomalyCLIPModel.save_prompts`]. The base model must be on the Hub too.
            commit_message, **hub: as in [`~AnomalyCLIPModel.push_to_hub`].

        Raises:
            ValueError: if the base model is a local folder, which nobody else has.
            ConnectionError: if the Hub can't be reached. What it refuses is the Hub client's own error.
        """
        validate_repo_id(repo_id)
        base = self.get_prompts(base_model_name_or_path, base_model_revision).config.base_model_name_or_path
        if base is not None and os.path.isabs(base):
            raise ValueError(
                f"the prompts' base model is the local folder {base!r}, which nobody else has; give "
                "base_model_name_or_path=... (the repository it came from), or share everything with push_to_hub"
            )
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            self.save_prompts(
                folder, processor, base_model_name_or_path, base_model_revision, card, save_code, tags, repo_id
            )
            return upload(Path(folder), repo_id, commit_message=commit_message, **hub)

    def save_pretrained(self, save_directory, *, push_to_hub=False, save_code=False, **kwargs) -> None:
        """Save everything, as `PreTrainedModel.save_pretrained` does; each file appears complete or not at all.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if absent.
            push_to_hub (`bool`, defaults to `False`): also push it, to `repo_id` or the folder's name.
            save_code (`bool`, defaults to `False`): add the code that `trust_remote_code=True` runs.
            **kwargs: as in `PreTrainedModel.save_pretrained` and [`~AnomalyCLIPModel.push_to_hub`].
        """
        names = ("repo_id", "commit_message", "commit_description", "private", "create_pr", "revision", "tags")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        if kwargs.get("distributed_checkpoint"):
            return super().save_pretrained(save_directory, **kwargs)
        with whole_folder(save_directory) as stage:
            super().save_pretrained(stage, **kwargs)
            self._add_code(stage, save_code)
        if push_to_hub:
            repo_id = hub.pop("repo_id", Path(save_directory).resolve().name)
            self.push_to_hub(repo_id, save_code=save_code, token=kwargs.get("token"), **hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor=None,
        card=True,
        save_code=False,
        tags=None,
        max_shard_size="50GB",
        variant=None,
        commit_message="Upload model",
        **hub,
    ):
        """Share everything on the Hub, in one commit: weights, configuration, processor and card.

        Args:
            repo_id (`str`): such as `"me/anomalyclip"`; made if absent.
            processor, card, save_code, tags: as in [`~AnomalyCLIPModel.save_prompts`].
            max_shard_size (`int` or `str`), variant (`str`, *optional*): as in `PreTrainedModel.save_pretrained`.
            commit_message (`str`).
            **hub: `commit_description`, `private`, `token`, `revision`, `create_pr` as in
                `PreTrainedModel.push_to_hub`; `dry_run=True` sends nothing and returns `{path: bytes}`.

        Raises:
            ConnectionError: if the Hub can't be reached. What it refuses is the Hub client's own error.
        """
        validate_repo_id(repo_id)
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size, variant=variant)
            (processor or self.default_processor()).save_pretrained(folder)
            self._add_code(Path(folder), save_code)
            add_card(Path(folder), self, card, tags, repo_id=repo_id)
            return upload(Path(folder), repo_id, commit_message=commit_message, **hub)

    def _add_code(self, folder: Path, wanted: bool) -> None:
        """Code goes with what is saved where it is asked for, and where the model itself came with its code."""
        if wanted or self.is_remote_code():
            add_code(folder, type(self))


__all__ = ["PromptSet", "PromptsMixin", "read_prompts", "write_prompts"]
