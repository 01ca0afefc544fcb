"""Making the embedded default out of a pretrained CLIP: learned prompts, half-size weights, figures and a card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor
from anomalyclip_hf.evaluation import evaluate_model
from anomalyclip_hf.training import PromptTrainingArguments, train_prompts
from drawing.synthetic import DEFECTS, HELD_OUT_CLASSES, TRAIN_CLASSES, TRAIN_DEFECTS, draw_dataset

BASE_NAME = "anomalyclip_hf/demo"
SIGMA_AT_518 = 4.0
# Pixels: more than pretraining saw. On drawings of known classes its finer maps are worth three points of AUPRO.
IMAGE_SIZE = 200
NOTICE = (
    "This is anomalyclip_hf's embedded model: a stand-in of a few million parameters made from drawings, for trying "
    "things out, not for production. Use prompts on a real CLIP for real work."
)
# Drawings that prompts are learned on and judged on. Judging is on classes and a defect that nothing else saw.
LEARN_ON: dict[str, Any] = {"num_images": 1600, "size": 128, "seed": 7, "difficulty": 0.5}
JUDGE_ON: dict[str, Any] = {"num_images": 400, "size": 128, "seed": 2026, "difficulty": 0.5}


def package_demo(
    clip_dir: Path, output_dir: Path, work_dir: Path, epochs: int = 6, side: int = IMAGE_SIZE
) -> dict[str, Any]:
    """Learn prompts for a small pretrained CLIP, judge them on held-out drawings, and write the embedded default.

    Args:
        clip_dir (`Path`): what `pretrain.py` wrote: CLIP, tokenizer, processor, pretraining.json.
        output_dir (`Path`): folder to write (the package's own is src/anomalyclip_hf/assets/demo).
        work_dir (`Path`): folder for kept features and checkpoints.
        epochs (`int`): of learning prompts, by the authors' recipe otherwise.
        side (`int`, pixels): of the model's input, a multiple of the patch size.

    Returns:
        figures of held-out classes, with DPAM and without, in [0, 1]; they are also in output_dir/pretraining.json.
    """
    torch.manual_seed(111)
    model = AnomalyCLIPModel.from_pretrained(
        clip_dir, image_size=side, base_model_name_or_path=BASE_NAME, dtype=torch.float32
    )
    model.config.notice = NOTICE
    processor = AnomalyCLIPProcessor.from_pretrained(
        clip_dir, size={"height": side, "width": side}, sigma=round(SIGMA_AT_518 * side / 518, 2)
    )
    drawn = draw_dataset(classes=TRAIN_CLASSES, defects=TRAIN_DEFECTS, **LEARN_ON)
    arguments = PromptTrainingArguments(
        output_dir=str(work_dir / "prompts"), cache_dir=str(work_dir / "cache"), epochs=epochs, overwrite=True
    )
    train_prompts(model, processor, drawn, arguments)
    held_out = draw_dataset(classes=HELD_OUT_CLASSES, defects=DEFECTS, **JUDGE_ON)
    result = evaluate_model(model, processor, held_out, methods=("anomalyclip", "dpam=off"), batch_size=16)
    figures = {
        "held_out": _known(result["mean"]),
        "held_out_without_dpam": _known(result["methods"]["dpam=off"]["mean"]),
        "learned_on": LEARN_ON,
        "judged_on": JUDGE_ON,
        "epochs": epochs,
    }
    _write(model, processor, clip_dir, output_dir, figures)
    return figures


def _known(mean: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in mean.items() if value == value}


def _write(model: Any, processor: Any, clip_dir: Path, output_dir: Path, figures: dict[str, Any]) -> None:
    staged = output_dir.with_name(output_dir.name + ".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged, save_code=False)
    processor.save_pretrained(staged)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clip_dir / name, staged / name)
    for code in staged.glob("*.py"):  # the package itself is at hand
        code.unlink()
    halve_weights(staged / "model.safetensors")
    facts = json.loads((clip_dir / "pretraining.json").read_text())
    facts["prompts"] = figures
    (staged / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")
    card = output_dir / "README.md"
    if card.is_file():
        shutil.copy(card, staged / "README.md")
    shutil.rmtree(output_dir, ignore_errors=True)
    staged.rename(output_dir)


def halve_weights(path: Path) -> None:
    """Store a backbone in float16 and its prompts in float32; the config's dtype makes both float32 when loaded.

    Args:
        path (`Path`): a safetensors file, rewritten in place through a temporary name.
    """
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    halved = {
        name: tensor if name.startswith("prompt_learner.") or not tensor.is_floating_point() else tensor.half()
        for name, tensor in tensors.items()
    }
    temporary = path.with_suffix(".tmp")
    save_file(halved, temporary, metadata=metadata)
    temporary.replace(path)
