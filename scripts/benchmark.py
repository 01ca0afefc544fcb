#!/usr/bin/env python
"""Time this package against a plain two-path forward, in one run, as ratios.

Random weights of ViT-L/14@336 size at 518 px; the plain forward computes both paths with full attention matrices in
float32, image by image where asked, the way the authors' program does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import anomalyclip_hf
from anomalyclip_hf.modeling_anomalyclip import AnomalyCLIPModel


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


def measure_forward(batch_sizes: list[int], repeats: int) -> list[dict]:
    """Plain float32, ours in float32 and in bfloat16, alternating, with the largest difference of the results."""
    models = {"float32": build_model(torch.float32), "bfloat16": build_model(torch.bfloat16)}
    models["bfloat16"].load_state_dict(models["float32"].state_dict())
    rows = []
    for batch in batch_sizes:
        pixel_values = torch.randn(batch, 3, 518, 518)
        with torch.no_grad():
            text_embeds = models["float32"].get_text_features()
            plain_logits, plain_maps = plain_forward(models["float32"], pixel_values, text_embeds)
            plain = seconds(lambda x=pixel_values, t=text_embeds: plain_forward(models["float32"], x, t), repeats)
            for name, model in models.items():
                ours = seconds(lambda x=pixel_values, m=model: m(pixel_values=x), repeats)
                output = model(pixel_values=pixel_values)
                rows.append(
                    {
                        "batch": batch,
                        "dtype": name,
                        "plain_s": plain,
                        "ours_s": ours,
                        "ratio": ours / plain,
                        "images_per_s": batch / ours,
                        "max_map_difference": (output.anomaly_maps - plain_maps).abs().max().item(),
                        "max_logit_difference": (output.logits - plain_logits).abs().max().item(),
                    }
                )
                print(_row(rows[-1]), flush=True)
    return rows


def _row(row: dict) -> str:
    return (
        f"batch {row['batch']}  {row['dtype']:8}  plain {row['plain_s']:.2f} s  ours {row['ours_s']:.2f} s  "
        f"ratio {row['ratio']:.3f}  map difference {row['max_map_difference']:.1e}"
    )


def measure_memory(dtype: str, batch: int) -> float:
    """Peak resident memory in GB of a process of its own that scores one batch."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import benchmark;"
        "model = benchmark.build_model(getattr(torch, sys.argv[2]));"
        "torch.set_grad_enabled(False);"
        "model(pixel_values=torch.randn(int(sys.argv[3]), 3, 518, 518));"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    here = str(Path(__file__).parent)
    out = subprocess.run(
        [sys.executable, "-c", code, here, dtype, str(batch)], capture_output=True, text=True, check=True
    )
    return int(out.stdout.split()[-1]) / 1e6


def measure_import(repeats: int = 7) -> dict:
    """Median seconds of `import transformers` and of `import anomalyclip_hf` after it, each in fresh processes."""
    code = (
        "import time; a = time.perf_counter(); import transformers; b = time.perf_counter();"
        "import anomalyclip_hf; c = time.perf_counter(); print(b - a, c - b)"
    )
    runs = [
        [float(x) for x in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()]
        for _ in range(repeats)
    ]
    first, second = (statistics.median(column) for column in zip(*runs, strict=True))
    return {"import_transformers_s": first, "import_anomalyclip_hf_adds_s": second}


PARTS = ("forward", "memory", "import")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark.json"))
    arguments = parser.parse_args()

    results: dict = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    if "import" in arguments.parts:
        results["import"] = measure_import()
        print(results["import"], flush=True)
    if "forward" in arguments.parts:
        results["forward"] = measure_forward(arguments.batch_sizes, arguments.repeats)
    if "memory" in arguments.parts:
        results["peak_memory_gb"] = {}
        for dtype in ("float32", "bfloat16"):
            for batch in arguments.batch_sizes:
                results["peak_memory_gb"][f"{dtype}, batch {batch}"] = measure_memory(dtype, batch)
                print(dtype, batch, results["peak_memory_gb"][f"{dtype}, batch {batch}"], "GB", flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n")
    temporary.replace(arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
