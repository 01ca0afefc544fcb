"""Text prompts beside text-free ones: learned on the same drawings, judged on held-out drawings and on photographs.

    python scripts/benchmark_prompts.py --photographs tests/fixtures/photos/cookies tests/fixtures/photos/pcb

For the embedded model, or --model, it prints image AUROC, pixel AUROC and AUPRO as means over seeds with their
standard deviation, and what the folded prompts of the checkpoint give untrained. Features are kept for all runs.
The standard deviation with which free prompts are drawn was chosen by --split validation --learning_rates.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

import anomalyclip_hf
from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor, load_anomaly_dataset
from anomalyclip_hf.training import PromptTrainingArguments, train_prompts
from anomalyclip_hf.training.features import FeatureCache
from anomalyclip_hf.training.samples import TrainingSamples
from anomalyclip_hf.training.validation import validate

sys.path.append(str(Path(__file__).resolve().parent / "demo_model"))
from draw import draw

METRICS = ("image_auroc", "pixel_auroc", "aupro")
# What is learned: prompt_type and initial_prompts.
KINDS = {"text": ("text", "fresh"), "free": ("free", "fresh"), "free-from-text": ("free", "model")}


def judge(model, processor, samples, cache, accelerator) -> list[float]:
    """The metrics in percent of a model on kept features, mean over classes."""
    batches = []
    for start in range(0, len(samples), 16):
        part = np.arange(start, min(start + 16, len(samples)))
        labels = torch.from_numpy(samples.labels[part])
        batches.append(([samples.class_names[row] for row in part], {**cache.read(part), "labels": labels}))
    found = validate(model, processor, batches, accelerator)
    return [100 * found[metric] for metric in METRICS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=anomalyclip_hf.demo_checkpoint())
    parser.add_argument("--presets", nargs="+", default=["released", "paper"], help="feature layers")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--learning_rates", type=float, nargs="+", help="for free prompts; the default if absent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[111, 112, 113])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train_images", type=int, default=800)
    parser.add_argument("--test_images", type=int, default=400)
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="of the held-out drawings")
    parser.add_argument("--photographs", nargs="*", default=[], help="folders of good, defect and masks")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/prompts-benchmark"))
    args = parser.parse_args()

    train = draw("train", num_images=args.train_images, size=128, seed=7, difficulty=0.5)
    sets = {"drawings": draw(args.split, num_images=args.test_images, size=128, difficulty=0.5)}
    sets |= {Path(folder).name: load_anomaly_dataset(folder) for folder in args.photographs}
    processor = AnomalyCLIPProcessor.from_pretrained(args.model)
    accelerator, judged = Accelerator(cpu=True), {name: TrainingSamples(rows, name) for name, rows in sets.items()}
    settings = {"cache_dir": str(args.output_dir / "cache"), "disable_tqdm": True, "overwrite": True, "cpu": True}
    print(f"{'':40} " + " ".join(f"{name + ' ' + metric:>24}" for name in sets for metric in METRICS))

    def show(title: str, runs: list[list[float]]) -> None:
        columns = [*zip(*runs, strict=True)]
        spread = [f" ± {statistics.stdev(column):.1f}" if len(column) > 1 else "" for column in columns]
        cells = [f"{statistics.mean(column):.1f}{more}" for column, more in zip(columns, spread, strict=True)]
        print(f"{title:40} " + " ".join(f"{cell:>24}" for cell in cells), flush=True)

    for preset in args.presets:
        own = AnomalyCLIPModel.from_pretrained(args.model, preset=preset)
        given = PromptTrainingArguments(output_dir=str(args.output_dir / "features"), **settings)
        caches = {
            name: FeatureCache.build(own, processor, samples, given, accelerator) for name, samples in judged.items()
        }

        def of_all(model, caches=caches) -> list[float]:
            found = (judge(model, processor, judged[name], caches[name], accelerator) for name in judged)
            return [value for values in found for value in values]

        show(f"{preset}: the checkpoint's own", [of_all(own)])
        for kind in args.kinds:
            prompt_type, initial = KINDS[kind]
            for rate in (prompt_type == "free" and args.learning_rates) or [None]:
                runs, start = [], time.perf_counter()
                for seed in args.seeds:
                    model = AnomalyCLIPModel.from_pretrained(args.model, preset=preset, prompt_type=prompt_type)
                    more = {} if rate is None else {"learning_rate": rate}
                    where = str(args.output_dir / f"{preset}-{kind}-{rate}-{seed}")
                    learning = PromptTrainingArguments(
                        output_dir=where, initial_prompts=initial, seed=seed, epochs=args.epochs, **more, **settings
                    )
                    with contextlib.redirect_stdout(io.StringIO()):
                        train_prompts(model, processor, train, learning)
                    runs.append(of_all(model))
                seconds = (time.perf_counter() - start) / len(runs)
                show(f"{preset}: {kind}{f' {rate:g}' if rate else ''}, {seconds:.0f} s", runs)


if __name__ == "__main__":
    main()
