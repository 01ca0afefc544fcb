"""Files of checkpoints: prompts, references and code, each of which appears whole or not at all."""

import base64
import copy
import inspect
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers.dynamic_module_utils import custom_object_save

from ..data.files import write_json
from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor
from ..prompts_anomalyclip import PROMPTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, PromptSet
from .references import KEY, References

WEIGHTS_PATTERNS = ("model.safetensors*", "model-*-of-*.safetensors", PROMPTS_NAME)
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


def write_prompts(prompts: PromptSet, path: str | os.PathLike) -> None:
    """Write the two tensors and the backbone's fingerprint; the same prompts make the same bytes."""
    tensors = {
        f"prompt_learner.{key}": value.detach().cpu().float().contiguous() for key, value in prompts.tensors.items()
    }
    # None where there is none: of two entries or more, safetensors would write the order at random.
    _write(tensors, path, _backbone(prompts.fingerprint) or None)


def write_references(references: References, path: str | os.PathLike) -> None:
    """Write references as a safetensors file."""
    facts = {"layers": references.layers, "weight": references.weight, "num_images": references.num_images}
    metadata = {"format": "pt", KEY: json.dumps(facts), **_backbone(references.fingerprint)}
    _write({"features": references.features.cpu().contiguous()}, path, metadata)


def _backbone(fingerprint: Tensor | None) -> dict[str, str]:
    """What a file says of the backbone that its content belongs to."""
    if fingerprint is None:
        return {}
    return {"backbone": base64.b64encode(fingerprint.numpy().astype("<f4").tobytes()).decode()}


def _write(tensors: dict[str, Tensor], path: str | os.PathLike, metadata: dict[str, str] | None) -> None:
    with whole_folder(Path(path).parent) as stage:
        save_file(tensors, stage / Path(path).name, metadata=metadata)


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
    """Raise a ValueError if prompts would be saved over a full checkpoint, whose config.json they would replace."""
    for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        if Path(folder, name).exists():
            raise ValueError(f"{folder} holds a full checkpoint ({name}); save the prompts to another folder")


def add_code(folder: Path, model_class: type) -> None:
    """Copy the code of a model, and of the pipeline, beside its config.json, for `trust_remote_code=True`."""
    custom_object_save(model_class, folder)
    pipeline = Path(inspect.getfile(model_class)).with_name("pipeline_anomalyclip.py")
    fields: dict[str, dict] = {"auto_map": AUTO_MAP}
    if pipeline.is_file():  # a checkpoint that brought its code itself may have brought no pipeline
        shutil.copy(pipeline, folder)  # which the model's own code doesn't import
        fields["custom_pipelines"] = CUSTOM_PIPELINES
    images = {"auto_map": {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}}
    for name, added in (("config.json", fields), ("preprocessor_config.json", images)):
        if (path := folder / name).is_file():
            stored = {**json.loads(path.read_text(encoding="utf-8")), **added}
            write_json(path, stored)
