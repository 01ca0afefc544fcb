"""Time this package against a plain two-path forward and itself, in one run, as ratios.

    python scripts/benchmark.py --parts import forward memory metrics loader predict training

Random weights of ViT-L/14@336 size at 518 px. The plain forward computes both paths for every token with full
attention matrices in float32, the way the authors' program does.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import anomalyclip_hf
from anomalyclip_hf.modeling_anomalyclip import AnomalyCLIPModel

SIDE = 518


@torch.no_grad()
def plain_forward(model: AnomalyCLIPModel, pixel_values: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Both paths for every token of every layer, with full attention matrices; an independent float32 reference."""
    config, vision = model.config, model.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixel_values))
    refined, features = None, []
    for number, layer in enumerate(vision.encoder.layers, start=1):
        attention, normed = layer.self_attn, layer.layer_norm1(hidden)
        heads = (*normed.shape[:-1], attention.num_heads, attention.head_dim)
        queries, keys, values = (
            projection(normed).view(heads).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )

        def attend(a: Tensor, b: Tensor, values=values, attention=attention, shape=normed.shape) -> Tensor:
            weights = ((a @ b.transpose(-1, -2)) * attention.scale).softmax(dim=-1)
            return attention.out_proj((weights @ values).transpose(1, 2).reshape(shape))

        original = attend(queries, keys)
        if number > config.vision_config.num_hidden_layers - config.dpam_layers:
            refined = (hidden if refined is None else refined) + attend(values, values)
        hidden = hidden + original
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        if number in config.feature_layers:
            features.append(vision.post_layernorm(hidden if refined is None else refined)[:, 1:])
    image = nn.functional.normalize(model.visual_projection(hidden[:, 0]), dim=-1)
    patches = torch.stack([nn.functional.normalize(model.visual_projection(f), dim=-1) for f in features], dim=1)
    size = (pixel_values.shape[-2], pixel_values.shape[-1])
    grid = (size[0] // config.vision_config.patch_size, size[1] // config.vision_config.patch_size)
    maps = anomalyclip_hf.compute_similarity_maps(patches, text_embeds, config.temperature, grid, size)
    return image @ text_embeds.T / config.temperature, maps[:, :, 1].mean(dim=1)


def build_model(dtype: torch.dtype) -> AnomalyCLIPModel:
    """ViT-L/14@336 with random weights, made in `dtype` so that no float32 copy ever exists."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        return AnomalyCLIPModel(anomalyclip_hf.AnomalyCLIPConfig()).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of `repeats` runs after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def measure_forward(batch_sizes: list[int], repeats: int) -> list[dict]:
    """Plain float32, ours in float32 and in bfloat16, with the largest difference of the results."""
    models = {"float32": build_model(torch.float32), "bfloat16": build_model(torch.bfloat16)}
    models["bfloat16"].load_state_dict(models["float32"].state_dict())
    text_embeds = models["float32"].get_prompt_embeds()
    rows = []
    for batch in batch_sizes:
        pixels = torch.randn(batch, 3, SIDE, SIDE)
        plain_logits, plain_maps = plain_forward(models["float32"], pixels, text_embeds)
        plain = seconds(partial(plain_forward, models["float32"], pixels, text_embeds), repeats)
        for name, model in models.items():
            ours = seconds(partial(model, pixel_values=pixels), repeats)  # type: ignore[misc]
            output = model(pixel_values=pixels)
            row = {
                "batch": batch,
                "dtype": name,
                "plain_s": plain,
                "ours_s": ours,
                "ratio": ours / plain,
                "max_map_difference": (output.anomaly_maps - plain_maps).abs().max().item(),
                "max_logit_difference": (output.logits - plain_logits).abs().max().item(),
            }
            rows.append(row)
            report("forward", row)
    return rows


def measure_memory(batch_sizes: list[int], repeats: int) -> list[dict]:
    """Peak resident memory of processes of their own that score one batch, in GB."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import benchmark;"
        "model = benchmark.build_model(getattr(torch, sys.argv[2])); torch.set_grad_enabled(False);"
        "model(pixel_values=torch.randn(int(sys.argv[3]), 3, 518, 518));"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    rows = []
    for dtype in ("float32", "bfloat16"):
        for batch in batch_sizes:
            kilobytes = run_python(code, str(Path(__file__).parent), dtype, str(batch)).split()[-1]
            rows.append({"dtype": dtype, "batch": batch, "peak_gb": int(kilobytes) * 1024 / 1e9})
            report("memory", rows[-1])
    return rows


def measure_import(batch_sizes: list[int], repeats: int) -> dict:
    """Median seconds of `import transformers` and of `import anomalyclip_hf` after it, in fresh processes."""
    code = (
        "import time; a = time.perf_counter(); import transformers; b = time.perf_counter();"
        "import anomalyclip_hf; c = time.perf_counter(); print(b - a, c - b)"
    )
    runs = [[float(x) for x in run_python(code).split()] for _ in range(2 * repeats + 1)]
    first, second = (statistics.median(column) for column in zip(*runs, strict=True))
    return report("import", {"transformers_s": first, "anomalyclip_hf_adds_s": second})


def measure_metrics(batch_sizes: list[int], repeats: int) -> dict:
    """All pixel metrics on 40 maps of 518x518: exact, and streaming with its largest difference from exact."""
    from scipy.ndimage import gaussian_filter

    from anomalyclip_hf.evaluation import StreamingPixelMetrics, pixel_metrics

    generator = np.random.default_rng(0)
    noise = generator.standard_normal((40, SIDE, SIDE), dtype=np.float32)
    smooth = np.stack([gaussian_filter(layer, 12) for layer in noise])
    masks = smooth > np.quantile(smooth, 0.97)
    maps = 1 / (1 + np.exp(-(20 * smooth + noise))).astype(np.float32)

    def streamed() -> dict:
        metric = StreamingPixelMetrics()
        metric.update(maps, masks)
        return metric.compute()

    exact, fast = pixel_metrics(maps, masks), streamed()
    names = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")
    row = {
        "exact_s": seconds(lambda: pixel_metrics(maps, masks), repeats),
        "streaming_s": seconds(streamed, repeats),
        "largest_difference": max(abs(exact[name] - fast[name]) for name in names),
    }
    return report("metrics", row)


@torch.no_grad()
def measure_loader(batch_sizes: list[int], repeats: int) -> dict:
    """Images per second of decoding and preprocessing beside those of the bfloat16 encoder."""
    from anomalyclip_hf import AnomalyCLIPProcessor, load_anomaly_dataset
    from anomalyclip_hf.data import make_loader

    model, pixels = build_model(torch.bfloat16), torch.randn(4, 3, SIDE, SIDE)
    row: dict = {"encoder_images_per_s": 4 / seconds(lambda: model.encode_images(pixels), repeats)}
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "good").mkdir()
        Path(folder, "defect").mkdir()
        for index in range(32):
            coarse = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((900, 900), Image.Resampling.BICUBIC)
            image.save(Path(folder, ("good", "defect")[index % 2], f"{index:03}.jpg"), quality=92)
        dataset = load_anomaly_dataset(folder, split="all")
        read = partial(_preprocess, processor=AnomalyCLIPProcessor())
        for workers in (0, 1):
            sampler = [index % len(dataset) for index in range(8 * len(dataset))]
            batches = iter(make_loader(dataset, read, num_workers=workers, sampler=sampler))
            next(batches)  # the first starts the workers, and does not count
            images, start = 0, time.perf_counter()
            for batch in batches:
                images += len(batch["pixel_values"])
                if time.perf_counter() - start > 5.0:
                    break
            row[f"loader_{workers}_workers_images_per_s"] = images / (time.perf_counter() - start)
    return report("loader", row)


def _preprocess(rows: list[dict], processor) -> dict:
    return processor([row["image"] for row in rows], masks=[row["mask"] for row in rows], return_tensors="pt")


def compare_training(model, processor, images: int, batch_size: int, epochs: int) -> dict:
    """Train twice from the same prompts, on kept float32 features and without.

    Args:
        model, processor: of any size; the model is left as it was.
        images, batch_size, epochs (`int`): how much to train.

    Returns:
        seconds per epoch of both, their ratio (cached / uncached), the largest difference of losses of any step,
        and the number of steps.
    """
    from anomalyclip_hf.training import PromptTrainingArguments, train_prompts
    from anomalyclip_hf.training.history import read_log

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
                cache_dtype="float32",
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


def measure_predict(batch_sizes: list[int], repeats: int) -> dict:
    """Images per second of `predict_files` with the embedded model, where time goes, and memory by number of files.

    Memory is the peak of a process of its own, with a detector that costs nothing, so that only the loop is measured.
    """
    from transformers import pipeline

    from anomalyclip_hf.scoring import overlay, predict_files
    from anomalyclip_hf.scoring.rows import PipelineScorer

    detector = pipeline("zero-shot-anomaly-detection", model=anomalyclip_hf.demo_checkpoint(), device="cpu")
    score, row = PipelineScorer(detector), dict[str, Any]()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(24):
            coarse = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            coarse.resize((1200, 900), Image.Resampling.BICUBIC).save(Path(folder, f"{index:03}.jpg"), quality=92)
        path = str(Path(folder, "000.jpg"))
        image, sizes = Image.open(path), [(900, 1200)]
        prepared = score.prepare(image)
        (result,) = score([prepared], sizes)
        drawn = overlay(image, result["anomaly_map"])
        row["prepare_ms"] = 1000 * seconds(lambda: score.prepare(Image.open(path)), repeats)
        row["score_ms"] = 1000 * seconds(lambda: score([prepared], sizes), repeats)
        row["draw_ms"] = 1000 * seconds(lambda: overlay(image, result["anomaly_map"]), repeats)
        row["encode_ms"] = 1000 * seconds(lambda: drawn.save(Path(folder, ".drawn.png"), compress_level=1), repeats)
        for overlays in ("none", "all"):
            for workers in (0, 2, 4):
                settings = {"overlays": overlays, "num_workers": workers, "batch_size": 4, "progress": False}
                start = time.perf_counter()
                summary = predict_files([folder], Path(tempfile.mkdtemp(dir=folder)), detector, **settings)
                taken = time.perf_counter() - start
                row[f"overlays_{overlays}_{workers}_workers_images_per_s"] = summary.num_scored / taken
    code = (
        "import sys, numpy as np; from PIL import Image; from pathlib import Path;"
        "from anomalyclip_hf.scoring import predict_files; folder, count = Path(sys.argv[1]), int(sys.argv[2]);"
        "[Image.new('L', (8, 8), i % 256).save(folder / f'{i:06}.png') for i in range(count)];"
        "score = lambda images, **_: [{'score': 0.5, 'anomaly_map': np.zeros((8, 8), np.float32)} for _ in images];"
        "predict_files([folder], folder.with_name('out'), score, overlays='none', progress=False, batch_size=4);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    for count in (1000, 20_000):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "in").mkdir()
            row[f"peak_mb_{count}_files"] = int(run_python(code, str(Path(folder, "in")), str(count))) * 1024 / 1e6
    return report("predict", row)


def measure_training(batch_sizes: list[int], repeats: int) -> dict:
    """An epoch of training on kept features against one without, and how far their losses differ over 20 steps."""
    model = build_model(torch.float32)
    processor = anomalyclip_hf.AnomalyCLIPProcessor()
    timed = compare_training(model, processor, images=8, batch_size=8, epochs=1)
    steps = compare_training(model, processor, images=2, batch_size=1, epochs=10)
    return report("training", {**timed, "largest_loss_difference_20_steps": steps["max_loss_difference"]})


def run_python(code: str, *arguments: str) -> str:
    """Output of a fresh Python process."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def report(part: str, row: dict) -> dict:
    """Print a result as it comes."""
    cells = (f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    print(f"{part:8}", "  ".join(cells), flush=True)
    return row


PARTS = {
    "import": measure_import,
    "forward": measure_forward,
    "memory": measure_memory,
    "metrics": measure_metrics,
    "loader": measure_loader,
    "predict": measure_predict,
    "training": measure_training,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark.json"))
    arguments = parser.parse_args()

    results: dict = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        results[part] = PARTS[part](arguments.batch_sizes, arguments.repeats)
        temporary = arguments.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n")
        temporary.replace(arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
