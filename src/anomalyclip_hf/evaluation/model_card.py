"""Model cards: what a checkpoint is, how it was trained, how well it does, how to use it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .metrics import METRICS
from .tables import percent

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

    from .. import AnomalyCLIPModel

TEMPLATE = Path(__file__).parent.parent / "assets" / "model_card.md"
TAGS = ["anomaly-detection", "zero-shot", "clip", "anomalyclip"]
# Image in, map out, and no candidate labels, which zero-shot-image-classification would ask for.
PIPELINE_TAG = "image-segmentation"

# Metrics of an evaluation that the Hub has a name for; others are not shown.
SHOWN = [key for key, metric in METRICS.items() if metric.hub_type]


def make_model_card(
    model: AnomalyCLIPModel,
    results: str | os.PathLike | Mapping[str, Any] | None = None,
    training: str | os.PathLike | Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    prompts_file: str | os.PathLike | None = None,
    base: str | None = None,
    with_code: bool = False,
) -> ModelCard:
    """Write the card of a model, with its results as `model-index` metadata.

    Args:
        model ([`AnomalyCLIPModel`]).
        results (path or `dict`, *optional*): the evaluator's `results.json`: `{"datasets": {name: {"title": ...,
            "mean": {"image_auroc": ..., ...}}}}`, values in [0, 1].
        training (path or `dict`, *optional*): what to say of the training, such as `{"dataset": "MVTec AD, test
            split", "dataset_license": "CC BY-NC-SA 4.0", "dataset_id": "user/name", "epochs": 15, "seed": 111}`.
            `dataset_id`, a data set on the Hub, goes into the metadata.
        repo_id (`str`, *optional*): repository or folder, for the code shown.
        license (`str`, *optional*): of the checkpoint, one of the Hub's, such as `"mit"`.
        prompts_file (path, *optional*): the file of prompts alone, whose checksum the card names.
        base (`str`, *optional*): base model; the configuration's if absent.
        with_code (`bool`): the code that `trust_remote_code=True` runs lies beside it.

    Raises:
        ValueError: if results or training can't be read, the field is named; or if results are of other prompts.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config = model.config
    base = base or config.base_model_name_or_path
    judged = _read(results, "results")
    evaluated, model_judged = judged.get("datasets", {}), judged.get("model") or {}
    prompts_sha256 = prompts_checksum(model)
    other = model_judged.get("prompts_sha256", prompts_sha256)
    if other != prompts_sha256 and not config.vision_only:  # folded prompts have another checksum than their own
        raise ValueError(f"results are of other prompts, of SHA-256 {other}; these have {prompts_sha256}: judge these")
    if not isinstance(evaluated, Mapping):
        raise ValueError(f"results['datasets'] is a {type(evaluated).__name__}, expected name -> results")
    means = {name: _mean(name, entry) for name, entry in evaluated.items()}
    recorded = dict(_read(training, "training"))
    kind = "vision-only" if config.vision_only else "prompts" if prompts_file is not None else "full"
    name = (repo_id or "").rstrip("/").split("/")[-1] or "AnomalyCLIP"
    in_folder = base is not None and os.path.isabs(base)
    in_package = base is not None and base.startswith("anomalyclip_hf/")
    based: dict[str, Any] = {}
    if base is not None and not in_folder and not in_package:
        based = {"base_model": base, "base_model_relation": "adapter" if kind == "prompts" else "finetune"}
    data = ModelCardData(
        datasets=recorded.pop("dataset_id", None),
        eval_results=_eval_results(means) or None,
        library_name="transformers",
        license=license,
        model_name=name,
        pipeline_tag=PIPELINE_TAG,
        tags=TAGS,
        **based,
    )
    shown = [key for key in SHOWN if any(key in mean for _, mean in means.values())]
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        wheel=f"anomalyclip_hf-{__version__}-py3-none-any.whl",
        title=name if name.lower().startswith("anomalyclip") else f"{name}: AnomalyCLIP",
        kind=kind,
        config=config,
        image_threshold=config.image_threshold,  # `save_thresholds` fills this part anew
        pixel_threshold=config.pixel_threshold,
        base=os.path.basename(base) if base is not None and in_folder else base,  # others need not know the folder
        prompts_sha256=prompts_sha256,
        fpr_limit=(judged.get("settings") or {}).get("fpr_limit", 0.3),
        prompts_file_sha256=prompts_file and hashlib.sha256(Path(prompts_file).read_bytes()).hexdigest(),
        repo_id=repo_id or "user/name",
        base_folder=kind == "prompts" and in_folder,
        base_in_package=kind == "prompts" and in_package,
        with_code=with_code,
        results=[
            {"name": title, "values": [percent(mean.get(key)) for key in shown]} for title, mean in means.values()
        ],
        metrics=[_card_title(key) for key in shown],
        training=[(key.replace("_", " "), value) for key, value in recorded.items() if value is not None],
    )


def prompts_checksum(model: AnomalyCLIPModel) -> str:
    """SHA-256 of the learned values (float32, little endian): words, then deep prompts; free prompts' vectors
    of the image, then of the layers; folded embeddings if none."""
    learner = getattr(model, "prompt_learner", None)
    tensors = [model.folded_text_embeds] if learner is None else learner.parameters()
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _read(source: str | os.PathLike | Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    if source is None or isinstance(source, Mapping):
        return source or {}
    try:
        value = json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}={os.fspath(source)!r} can't be read as JSON ({error})") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={os.fspath(source)!r} holds a {type(value).__name__}, expected an object")
    return value


def _mean(name: str, entry: Any) -> tuple[str, dict[str, float]]:
    """Title and finite means of one data set."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"results['datasets'][{name!r}] is a {type(entry).__name__}, expected an object")
    mean = entry.get("mean") or {}
    numbers = {key: float(mean[key]) for key in SHOWN if isinstance(mean.get(key), int | float)}
    return str(entry.get("title") or name), {key: value for key, value in numbers.items() if math.isfinite(value)}


def _eval_results(means: Mapping[str, tuple[str, dict[str, float]]]) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Zero-shot anomaly detection",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
            dataset_name=title,
            metric_type=str(METRICS[key].hub_type),
            metric_name=_card_title(key),
            metric_value=round(value, 4),
        )
        for name, (title, mean) in means.items()
        for key, value in mean.items()
    ]


def _card_title(key: str) -> str:
    return METRICS[key].card_title or METRICS[key].title
