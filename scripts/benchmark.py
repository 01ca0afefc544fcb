"""Time this package against a plain two-path forward and itself, in one run, as ratios.

    python scripts/benchmark.py --parts engines --engines_dir outputs/engines --repeats 0     # exports alone
    python scripts/benchmark.py --parts engines --engines_dir outputs/engines                 # 8 minutes on 2 cores
    python scripts/benchmark.py --parts import metrics loader predict training
    python scripts/benchmark.py --device cuda                                                 # 5 minutes on one GPU

Random weights of ViT-L/14@336 size at 518 px unless --model names others. The plain forward computes both paths for
every token with full attention matrices in float32, the way the authors' program does.
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
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

import anomalyclip_hf
from anomalyclip_hf.export.certificate import describe_machine
from anomalyclip_hf.modeling_anomalyclip import AnomalyCLIPModel
from benchmark_engines import ENGINES, MODEL, time_engines

SIDE = 518
COMPILED = {"bfloat16": (1, 32), "float16": (32,)}  # batch sizes, since compiling takes most of the time


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


def load_model(arguments: argparse.Namespace) -> tuple[AnomalyCLIPModel, anomalyclip_hf.AnomalyCLIPProcessor]:
    """The model named, or a random ViT-L/14@336, in float32; with its processor."""
    if arguments.model is None:
        return build_model(torch.float32), anomalyclip_hf.AnomalyCLIPProcessor()
    model = AnomalyCLIPModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    return model, model.default_processor()


def measure_engines(arguments: argparse.Namespace) -> list[dict]:
    """Every engine against plain: ratios of interleaved rounds, peak memory, largest differences."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.engines_dir or Path(temporary)
        if not (folder / MODEL).exists():
            model, processor = load_model(arguments)
            (model if model.config.vision_only else model.to_vision_only()).save_pretrained(folder / MODEL)
            processor.save_pretrained(folder / MODEL)
            del model
        rows = time_engines(folder, arguments.engines, arguments.batch_sizes, arguments.repeats)
    return [report("engines", row) for row in rows]


def measure_import(arguments: argparse.Namespace) -> dict:
    """Median seconds of `import transformers` and of `import anomalyclip_hf` after it, in fresh processes."""
    code = (
        "import time; a = time.perf_counter(); import transformers; b = time.perf_counter();"
        "import anomalyclip_hf; c = time.perf_counter(); print(b - a, c - b)"
    )
    runs = [[float(x) for x in run_python(code).split()] for _ in range(2 * arguments.repeats + 1)]
    first, second = (statistics.median(column) for column in zip(*runs, strict=True))
    return report("import", {"transformers_s": first, "anomalyclip_hf_adds_s": second})


def measure_metrics(arguments: argparse.Namespace) -> dict:
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
        "exact_s": seconds(lambda: pixel_metrics(maps, masks), arguments.repeats),
        "streaming_s": seconds(streamed, arguments.repeats),
        "largest_difference": max(abs(exact[name] - fast[name]) for name in names),
    }
    return report("metrics", row)


@torch.no_grad()
def measure_loader(arguments: argparse.Namespace) -> dict:
    """Images per second of decoding and preprocessing beside those of the bfloat16 encoder."""
    from torch.utils.data import DataLoader

    from anomalyclip_hf import AnomalyCLIPProcessor, load_anomaly_dataset

    model, pixels = build_model(torch.bfloat16), torch.randn(4, 3, SIDE, SIDE)
    row: dict = {"encoder_images_per_s": 4 / seconds(lambda: model.encode_images(pixels), arguments.repeats)}
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
            batches = iter(DataLoader(dataset, 8, num_workers=workers, sampler=sampler, collate_fn=read))
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


def measure_predict(arguments: argparse.Namespace) -> dict:
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
        row["prepare_ms"] = 1000 * seconds(lambda: score.prepare(Image.open(path)), arguments.repeats)
        row["score_ms"] = 1000 * seconds(lambda: score([prepared], sizes), arguments.repeats)
        row["draw_ms"] = 1000 * seconds(lambda: overlay(image, result["anomaly_map"]), arguments.repeats)
        row["encode_ms"] = 1000 * seconds(
            lambda: drawn.save(Path(folder, ".drawn.png"), compress_level=1), arguments.repeats
        )
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


def measure_training(arguments: argparse.Namespace) -> dict:
    """An epoch of training on kept features against one without, and how far their losses differ over 20 steps."""
    model, processor = load_model(arguments)
    timed = compare_training(model, processor, images=8 if arguments.device == "cpu" else 64, batch_size=8, epochs=1)
    steps = compare_training(model, processor, images=2, batch_size=1, epochs=10)
    return report("training", {**timed, "largest_loss_difference_20_steps": steps["max_loss_difference"]})


@torch.no_grad()
def measure_device(arguments: argparse.Namespace) -> list[dict]:
    """Images per second and peak memory by dtype, attention and batch size, and compiled, on one device.

    Differences are from float32 on the CPU. A combination that the device lacks or has no memory for says why.
    """
    device, (model, _) = torch.device(arguments.device), load_model(arguments)
    model = model if model.config.vision_only else model.to_vision_only()
    images = torch.randn(max(arguments.batch_sizes), 3, *[model.config.image_size] * 2)
    exact, rows = model(pixel_values=images[:1]), []
    for dtype in (torch.bfloat16, torch.float16):
        half, name = copy.deepcopy(model).to(device, dtype), str(dtype).removeprefix("torch.")
        combinations = [(form, batch) for form in ("sdpa", "flash") for batch in arguments.batch_sizes]
        combinations += [("compiled", batch) for batch in COMPILED[name] if batch in arguments.batch_sizes]
        for form, batch in combinations:
            row: dict = {"dtype": name, "form": form, "batch": batch}
            forward = torch.compile(half, dynamic=False) if form == "compiled" else half
            run = partial(forward, images[:batch].to(device), text_embeds=half.get_prompt_embeds())
            try:
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if form == "flash" else nullcontext():
                    row |= _throughput(run, batch, device)
                    found = run()
                for key in ("logits", "anomaly_maps"):
                    row[f"max_{key}_difference"] = (found[key][0].cpu() - exact[key][0]).abs().max().item()
                del found
            except RuntimeError as error:  # no such kernel, or no memory
                row["failed"] = str(error).splitlines()[0]
            rows.append(report("device", row))
    return rows


def _throughput(run: Callable[[], object], batch: int, device: torch.device, least: float = 1.0) -> dict[str, float]:
    """Of runs that take `least` seconds together, 2 at least, after one that doesn't count."""
    is_cuda = device.type == "cuda"
    wait = torch.cuda.synchronize if is_cuda else lambda: None
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    run()
    wait()
    count, start = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < least:
        run()
        wait()
        count += 1
    rate = count * batch / (time.perf_counter() - start)
    return {"images_per_s": rate} | ({"peak_gb": torch.cuda.max_memory_allocated(device) / 1e9} if is_cuda else {})


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
    "engines": measure_engines,
    "import": measure_import,
    "metrics": measure_metrics,
    "loader": measure_loader,
    "predict": measure_predict,
    "training": measure_training,
    "device": measure_device,
}
DEVICE_PARTS = ["device", "training", "metrics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--device", default="cpu", help="of the parts device and training")
    parser.add_argument("--model", help="checkpoint; a random ViT-L/14@336 if absent")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument(
        "--engines_dir", type=Path, help="where model and exports are kept, and found again whatever --model says"
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark.json"))
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    parts = arguments.parts or ([name for name in PARTS if name != "device"] if on_cpu else DEVICE_PARTS)
    arguments.batch_sizes = arguments.batch_sizes or ([1] if on_cpu else [1, 2, 4, 8, 16, 32, 64])

    results: dict = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    results |= describe_machine()
    if not on_cpu:
        results["device"] = torch.cuda.get_device_name(arguments.device)
    report("machine", results)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        results[part] = PARTS[part](arguments)
        temporary = arguments.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n")
        temporary.replace(arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
