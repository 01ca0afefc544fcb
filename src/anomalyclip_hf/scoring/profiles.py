"""Profiles: one model, many products. A profile keeps the settings of one product beside the prompts.

`profiles/<name>.json` in a checkpoint's folder or repository; what belongs to it lies in `profiles/<name>/`.
"""

import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from PIL import Image
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ..configuration_anomalyclip import check_fields
from ..data.files import write_json
from ..data.pixels import check_channels, check_window
from ..image_processing_anomalyclip import following, with_resizing
from ..options_anomalyclip import READING
from ..prompts_anomalyclip import (
    DEMO_BASE,
    PromptSet,
    PromptsMixin,
    check_same_backbone,
    locate_base,
    read_prompts,
    refuse_vision_only,
)
from ..sharing.prompts import copy_prompts
from ..sharing.writing import whole_folder, write_checkpoint, write_references
from .regions import read_roi

logger = logging.get_logger(__name__)

FOLDER = "profiles"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass
class Profile:
    """The settings of one product; None leaves a setting to the model.

    Args:
        name (`str`): letters, digits, `-`, `_` and `.`, at most 64.
        prompts (*optional*): what was given to `add_prompts` as a name, a folder of prompts, or a `PromptSet`.
        image_threshold, pixel_threshold (`float` in [0, 1], *optional*).
        sigma, min_area, roi, window, channels, resize, tile_size, overlap, score_rule, reference_weight (*optional*):
            options of a call of the pipeline. A region of interest is read at once.
        references (*optional*): what `make_references` takes: a folder of good images, or a file of their features,
            which is what is stored.
        calibration (`dict`, *optional*): how the thresholds were found, and what they promise.

    Raises:
        ValueError: naming the field that holds no possible value.
    """

    name: str
    prompts: Any = None
    image_threshold: float | None = None
    pixel_threshold: float | None = None
    sigma: float | None = None
    min_area: int | None = None
    roi: Any = None
    window: Any = None
    channels: list[int] | None = None
    resize: str | None = None
    tile_size: int | None = None
    overlap: float | None = None
    score_rule: str | None = None
    references: str | None = None
    reference_weight: float | None = None
    calibration: dict[str, Any] | None = None

    def __post_init__(self):
        check_profile_name(self.name)
        numbers = {key: value.item() for key, value in vars(self).items() if isinstance(value, np.generic)}
        vars(self).update(numbers)  # of numpy, which JSON doesn't hold
        apart = ("name", "prompts", "roi", "references", *READING)
        check_fields({key: value for key, value in vars(self).items() if key not in apart}, f"profile {self.name}: ")
        for key in ("prompts", "references"):
            value = getattr(self, key)
            if not (value is None or isinstance(value, str | os.PathLike | list) or hasattr(value, "fingerprint")):
                raise ValueError(f"profile {self.name}: {key} is a {type(value).__name__}, expected a folder")
        if not isinstance(self.calibration, dict | None):
            raise ValueError(f"profile {self.name}: calibration={self.calibration!r:.100}, expected facts by name")
        for key, read in (("roi", read_roi), ("window", check_window), ("channels", check_channels)):
            if (value := getattr(self, key)) is not None:
                try:
                    setattr(self, key, read(value))
                except ValueError as error:
                    raise ValueError(f"profile {self.name}: {error}") from error

    @property
    def options(self) -> dict[str, Any]:
        """The options of a call that are set."""
        apart = ("name", "prompts", "references", "reference_weight", "calibration")
        return {key: value for key, value in vars(self).items() if key not in apart and value is not None}

    def to_dict(self) -> dict[str, Any]:
        """What is written to `profiles/<name>.json`; paths from the checkpoint's folder."""
        stored = {key: value for key, value in vars(self).items() if value is not None}
        files = {"prompts": "", "references": "/references.safetensors"}
        if isinstance(self.roi, Image.Image):
            files["roi"] = "/roi.png"
        return stored | {key: f"{FOLDER}/{self.name}{end}" for key, end in files.items() if key in stored}

    def save(self, folder: str | os.PathLike) -> None:
        """Write `profiles/<name>.json`, last and whole, and the files it names, into a checkpoint's folder.

        Prompts and references are written by [`~AnomalyCLIPModel.save_profiles`].
        """
        own = Path(folder, FOLDER, self.name)
        if isinstance(self.roi, Image.Image):
            with whole_folder(own) as stage:
                self.roi.save(stage / "roi.png")
        with whole_folder(own.parent) as stage:
            write_json(stage / f"{self.name}.json", self.to_dict())


def check_profile_name(name: Any) -> None:
    """Refuse a name that is not safe as a file's.

    Raises:
        ValueError: saying what is expected.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"profile={name!r:.100}, expected a name of letters, digits, '-', '_' and '.', such as 'bottle'"
        )


def read_profile(name: str, source: str, **hub: Any) -> Profile:
    """Read a profile of a checkpoint. Its prompts, if any, are a full path, or a folder in a Hub repository.

    Args:
        name (`str`).
        source (`str`): folder or Hub repository.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`.

    Raises:
        ValueError: if there is no such profile (the known ones are named), or one that can't be used.
        OSError: if a file that it names isn't there.
    """
    check_profile_name(name)
    cause: Exception | None = None
    try:
        quiet = {"_raise_exceptions_for_missing_entries": False}
        file = cached_file(source, f"{FOLDER}/{name}.json", **quiet, **hub)
    except OSError as error:  # no network, and never fetched
        file, cause = None, error
    if file is None:
        others = ", ".join(profile_names(source, **hub)) or "none"
        raise ValueError(f"{source} has no profile {name!r}; known are: {others}") from cause
    where = f"{FOLDER}/{name}.json of {source}"
    try:
        stored = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(stored, dict) or stored.get("name", name) != name:
        raise ValueError(f"{where} holds {str(stored)[:100]}, expected the fields of the profile named {name!r}")
    known = [field.name for field in fields(Profile)]
    if unknown := sorted(set(stored) - set(known)):
        raise ValueError(f"{where} has the unknown fields {unknown}; known are {', '.join(known)}")
    for key in ("prompts", "roi", "references"):
        if (value := stored.get(key)) is not None and not (key == "roi" and isinstance(value, list)):
            _check_inside(value, source, f"{where}: {key}")
            if key != "prompts" or os.path.isdir(source):
                stored[key] = _local_path(value, source, hub)
    return Profile(**{**stored, "name": name})


def profile_names(source: str, **hub: Any) -> list[str]:
    """Names of the profiles of a checkpoint; where the Hub can't be asked, of those in the cache."""
    folder = PurePosixPath(hub.get("subfolder") or "", FOLDER)
    if not os.path.isdir(source):
        try:
            if hub.get("local_files_only"):
                raise OSError("not asked")
            files = HfApi(token=hub.get("token")).list_repo_files(source, revision=hub.get("revision"))
            paths = [path for path in map(PurePosixPath, files) if path.parent == folder]
            return sorted(path.stem for path in paths if path.suffix == ".json")
        except Exception:  # no network, or no such repository
            quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
            config = cached_file(source, "config.json", **{**hub, "local_files_only": True}, **quiet)
            if config is None:
                return []
            source, folder = str(Path(config).parent), PurePosixPath(FOLDER)
    return sorted(path.stem for path in Path(source, folder).glob("*.json") if NAME.fullmatch(path.stem))


def _check_inside(value: Any, source: str, where: str) -> None:
    """Refuse a path of a file that leads out of its checkpoint."""
    parts = PurePosixPath(value).parts if isinstance(value, str) else ()
    if not parts or ".." in parts or value.startswith(("/", "~")) or "\\" in value or ":" in value:
        raise ValueError(f"{where}={value!r:.100}, expected a path inside of the checkpoint")
    root = Path(os.path.realpath(source))
    root = root.parents[1] if root.parent.name == "snapshots" else root  # the Hub's cache has its files beside
    if os.path.isdir(source) and root not in (real := Path(os.path.realpath(Path(source, value)))).parents:
        raise ValueError(f"{where}={value!r:.100} leads to {real}, outside of the checkpoint")


def _local_path(value: str, source: str, hub: dict[str, Any]) -> str:
    if not os.path.isdir(source):
        return cached_file(source, value, **hub)
    path = os.path.join(source, PurePosixPath(hub.get("subfolder") or "", value).as_posix())
    if not os.path.exists(path):
        raise FileNotFoundError(f"a profile of {source} names {value}, which isn't there")
    return path


# What a model does with its profiles


def known_profiles(model: PromptsMixin) -> list[str]:
    """Names of the profiles of a model's checkpoint, and of those that were set."""
    source, hub = _source_of(model)
    return sorted({*model.__dict__.get("_profiles", {}), *(profile_names(source, **hub) if source else [])})


def get_profile(model: PromptsMixin, name: str) -> Profile:
    """A profile by its name, read from the model's checkpoint the first time; raises as [`set_profile`] does."""
    profiles = model.__dict__.setdefault("_profiles", {})
    if name not in profiles:
        source, hub = _source_of(model)
        if source is None:
            raise ValueError(f"this model has no profile {name!r}; known are: {', '.join(profiles) or 'none'}")
        profile = read_profile(name, source, **hub)
        if profile.prompts is not None:
            if os.path.isabs(profile.prompts):
                profile.prompts = read_prompts(profile.prompts)
            else:
                inner = "/".join(filter(None, (hub.get("subfolder"), profile.prompts)))
                profile.prompts = read_prompts(source, **{**hub, "subfolder": inner})
            check_same_backbone(profile.prompts, model)
        profiles[name] = profile
    return profiles[name]


def set_profile(model: PromptsMixin, profile: str | Profile | None) -> None:
    """Judge by the settings of one product from now on; a switch between profiles takes well under a millisecond.

    The pipeline takes the profile's options where a call gives none. Prompts of a profile are put on the backbone,
    and the model's own come back with the next profile that has none.

    Args:
        model ([`AnomalyCLIPModel`]).
        profile (`str` or [`Profile`], *optional*): name of one beside the model's checkpoint, read the first time,
            or one made here, kept under its name; None = the model's own settings.

    Raises:
        ValueError: if there is no such profile (the known ones are named), or one that can't be used; the model is
            then unchanged.
    """
    wanted = get_profile(model, profile) if isinstance(profile, str) else profile
    prompts = None if wanted is None else _prompts_of(model, wanted)
    own = model.__dict__.get("_own_prompts")
    before = model.__dict__.get("_own_references", getattr(model, "references", None))
    found = None if wanted is None else _references_of(model, wanted, before)
    if found is not None:
        model.__dict__["_own_references"] = before
        model.references = found
    elif "_own_references" in model.__dict__:
        model.references = model.__dict__.pop("_own_references")
    if prompts is not None:
        own = own or copy_prompts(model)
        model._put(prompts)
        model.__dict__["_own_prompts"] = own
    elif own is not None:
        model._put(own)
    if wanted is not None:
        model.__dict__.setdefault("_profiles", {})[wanted.name] = wanted
    model.__dict__["_profile"] = wanted


def save_profiles(model: PromptsMixin, save_directory: str | os.PathLike, names: list[str] | None = None) -> None:
    """Write profiles with all that belongs to them into the folder of a saved checkpoint.

    Args:
        model ([`AnomalyCLIPModel`]).
        save_directory (`str` or `os.PathLike`).
        names (`list[str]`, *optional*): all that are known if absent; of those, one that can't be read is left out
            with a warning.
    """
    if names is None and model.profile is not None and "_own_prompts" in model.__dict__:
        logger.warning(
            f"profile {model.profile.name} is set, so that its prompts are saved as the model's own; to save the "
            "others, call set_profile(None) first"
        )
    if names is None and model.__dict__.get("_own_references", model.references) is not None:
        logger.warning(
            "the model's own references are not saved with it; save_references(...) writes them, and a profile "
            "keeps those of a product"
        )
    for name in known_profiles(model) if names is None else names:
        try:
            profile = get_profile(model, name)
            prompts = _prompts_of(model, profile)
            references = None if profile.references is None else _references_of(model, profile, None)
        except (OSError, ValueError) as error:
            if names is not None:
                raise
            logger.warning(f"profile {name} is not saved: {error}")
            continue
        if prompts is not None:
            with whole_folder(Path(save_directory, FOLDER, name)) as stage:
                write_checkpoint(stage, prompts, model.default_processor(), type(model))
        if references is not None:
            write_references(references, Path(save_directory, FOLDER, name, "references.safetensors"))
        profile.save(save_directory)


def _source_of(model: PromptsMixin) -> tuple[str | None, dict[str, Any]]:
    name, hub = getattr(model, "_processor_source", (None, {}))
    return (locate_base(name, ".") if name == DEMO_BASE else name), hub


def _references_of(model: PromptsMixin, profile: Profile, own: Any) -> Any:
    """A profile's references, made once; those of the model where it weighs them alone."""
    weight, given = profile.reference_weight, profile.references
    if given is None:
        if weight is not None and own is None:
            raise ValueError(f"profile {profile.name}: reference_weight={weight} without references; give both")
        return None if weight is None else model.make_references(own, weight)
    processor = None
    if not hasattr(given, "fingerprint"):  # images: patches are compared with those of the same scale
        patch_size = model.config.vision_config.patch_size
        owner = _prompts_of(model, profile) or model.__dict__.get("_own_prompts") or model  # whose input size counts
        processor = following(model.default_processor(), model.config.image_size, owner.config.image_size)
        processor = with_resizing(processor, profile.options, patch_size)
    reading = {name: getattr(profile, name) for name in READING}
    profile.references = model.make_references(given, weight, processor=processor, **reading)
    return profile.references


def _prompts_of(model: PromptsMixin, profile: Profile) -> PromptSet | None:
    """A profile's prompts, read and checked once."""
    prompts = profile.prompts
    if prompts is None:
        return None
    refuse_vision_only(model.config, f"profile {profile.name} can't put its prompts on it")
    if isinstance(prompts, str) and prompts in model.prompt_names:
        return model.__dict__["_prompt_sets"][prompts]
    if isinstance(prompts, str | os.PathLike):
        prompts = read_prompts(prompts)
        check_same_backbone(prompts, model)
        profile.prompts = prompts
    return prompts
