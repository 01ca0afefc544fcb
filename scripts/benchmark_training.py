"""Times an epoch of training on kept features against one without, and compares their losses, at ViT-L/14@336 size.

`python scripts/benchmark_training.py --images 8 --epochs 1` takes about three minutes on two cores;
`--images 2 --batch_size 1 --epochs 10` compares the losses of 20 steps.
"""

import argparse
import copy
import json
import tempfile

import numpy as np
import torch
from PIL import Image

from anomalyclip_hf import AnomalyCLIPConfig, AnomalyCLIPModel, AnomalyCLIPProcessor
from anomalyclip_hf.training import PromptTrainingArguments, train_prompts
from anomalyclip_hf.training.history import read_log


def compare_training(model, processor, images: int = 8, batch_size: int = 8, epochs: int = 1, **fields) -> dict:
    """Train twice from the same prompts, on kept float32 features and without.

    Args:
        model, processor: of any size; the model is left as it was.
        images, batch_size, epochs (`int`): how much to train.
        **fields: further fields of `PromptTrainingArguments`, such as `cache_dtype`.

    Returns:
        seconds per epoch of both, their ratio (cached / uncached), the largest difference of losses of any step,
        and the number of steps.
    """
    side, generator = processor.size["height"], np.random.default_rng(0)
    samples = []
    for index in range(images):
        picture = Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
        mask = Image.fromarray(np.uint8(255) * (generator.random((side, side)) > 0.9))
        samples.append({"image": picture, "label": index % 2, "mask": mask if index % 2 else None})
    prompts = copy.deepcopy(model.prompt_learner.state_dict())
    found: dict[str, tuple[float, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("uncached", "cached", "cached again"):
            # The first run on kept features also computes and first touches them; the second one is timed.
            model.prompt_learner.load_state_dict(prompts)
            args = PromptTrainingArguments(
                output_dir=f"{folder}/{name}",
                cache_dir=f"{folder}/cache",
                batch_size=batch_size,
                epochs=epochs,
                no_cache=name == "uncached",
                disable_tqdm=True,
                save_full=False,
                **{"cache_dtype": "float32", **fields},
            )
            model.config.base_model_name_or_path = "benchmark"  # so that no backbone is written
            result = train_prompts(model, processor, samples, args)
            rows = [row for row in read_log(result.output_dir) if row["kind"] == "step"]
            losses = np.array([[row["global_loss"], row["local_loss"]] for row in rows])
            found[name] = (result.summary["seconds"] / epochs, losses)
    model.prompt_learner.load_state_dict(prompts)
    return {
        "uncached_seconds_per_epoch": round(found["uncached"][0], 3),
        "cached_seconds_per_epoch": round(found["cached again"][0], 3),
        "ratio": round(found["cached again"][0] / found["uncached"][0], 4),
        "max_loss_difference": float(np.abs(found["uncached"][1] - found["cached"][1]).max()),
        "steps": len(found["cached"][1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--layers", type=int, default=24, help="vision layers; fewer for a quick look")
    parser.add_argument("--cache_dtype", default="float32")
    args = parser.parse_args()
    torch.manual_seed(0)
    vision = {**AnomalyCLIPConfig().vision_config.to_dict(), "num_hidden_layers": args.layers}
    model = AnomalyCLIPModel(AnomalyCLIPConfig(vision_config=vision)).eval()
    fields = {"images": args.images, "batch_size": args.batch_size, "epochs": args.epochs}
    print(
        json.dumps(compare_training(model, AnomalyCLIPProcessor(), cache_dtype=args.cache_dtype, **fields), indent=2)
    )


if __name__ == "__main__":
    main()
