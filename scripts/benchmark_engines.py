"""Time engines against one another, each in a process of its own; `benchmark.py --parts engines` runs it.

Run as a script it is one such process: it answers a batch size on each line of its input with a line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from anomalyclip_hf import AnomalyCLIPModel

TORCH = (
    "plain",
    "float32",
    "bfloat16",
    "compiled-float32",
    "compiled-bfloat16",
    "score-float32",
    "maps-float32",
)
EXPORTED = ("onnx-float32", "onnx-int8", "openvino-float32", "openvino-bfloat16", "openvino-int8")
ENGINES = (*TORCH, *EXPORTED)
MODEL = "model"  # folder of the model that engines are made of
CALIBRATION = 4  # drawn images that show int8 of OpenVINO its ranges


def pixel_values(batch: int, side: int) -> np.ndarray:
    """The same normalised images `(B, 3, side, side)`, float32, in all processes."""
    return np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)


def export_engines(folder: Path, engines: list[str]) -> None:
    """Export the model of a folder to those of the engines that lie in none yet, beside it."""
    from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor
    from anomalyclip_hf.export import export_model
    from anomalyclip_hf.export.certificate import draw_images
    from anomalyclip_hf.export.engines import is_exported

    for name in engines:
        if name in EXPORTED and not is_exported(folder / name):
            model = AnomalyCLIPModel.from_pretrained(folder / MODEL)
            processor = AnomalyCLIPProcessor.from_pretrained(folder / MODEL)
            drawn, (kind, precision) = draw_images(max(model.config.image_size, 64)), name.split("-")
            given: dict[str, Any] = {"images": drawn[:1], "tolerance": 1.0}
            if name == "openvino-int8":
                given["calibration_images"] = drawn[:CALIBRATION]
            start = time.perf_counter()
            export_model(model, processor, folder / name, kind, precision, **given)
            print(f"exported {name} in {time.perf_counter() - start:.0f} s", flush=True)


def time_engines(folder: Path, engines: list[str], batch_sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row an engine and batch size, from interleaved rounds.

    Args:
        folder: holds the model in `MODEL`; exports are kept there.
        engines: of `ENGINES`; `plain` and `float32`, which others are compared with, are always among them.
        batch_sizes: images per forward.
        repeats: rounds that count, after one that doesn't; 0 = export alone.

    Returns:
        dicts: `batch`, `engine`, `ratio_min` and `ratio_median` of seconds to those of `plain` in the same round,
        `seconds` (median), `peak_gb` of the process, and largest differences of score and map from `float32`.
    """
    engines = [name for name in ENGINES if name in {"plain", "float32", *engines}]
    export_engines(folder, engines)
    if not repeats:
        return []
    rows, running = [], {name: _start(name, folder) for name in engines}
    try:
        for one in running.values():
            _ask(one)  # once it is loaded
        for batch in batch_sizes:
            rounds = [{name: _ask(one, batch) for name, one in running.items()} for _ in range(repeats + 1)][1:]
            scores, maps = np.load(rounds[0]["float32"]["outputs"]).values()
            for name in engines:
                taken = [found[name]["seconds"] for found in rounds]
                ratios = [found[name]["seconds"] / found["plain"]["seconds"] for found in rounds]
                row = {"batch": batch, "engine": name, "ratio_min": min(ratios)}
                row |= {"ratio_median": statistics.median(ratios), "seconds": statistics.median(taken)}
                row["peak_gb"] = rounds[-1][name]["peak_gb"]
                outputs = np.load(rounds[0][name]["outputs"])
                for kind, exact in (("score", scores), ("map", maps)):
                    if outputs[kind].size:
                        row[f"max_{kind}_difference"] = float(np.abs(outputs[kind] - exact).max())
                rows.append(row)
    finally:
        for one in running.values():
            one.kill()
            one.communicate()
    return rows


def _start(name: str, folder: Path) -> subprocess.Popen[str]:
    """A process that holds one engine."""
    command = [sys.executable, __file__, name, str(folder)]
    quiet = {**os.environ, "TQDM_DISABLE": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)


def _ask(one: subprocess.Popen[str], batch: int | None = None) -> dict[str, Any]:
    """What a process says next, of a batch of this size if one is given."""
    assert one.stdin and one.stdout
    if batch:
        print(batch, file=one.stdin, flush=True)
    if not (line := one.stdout.readline()):
        raise RuntimeError(f"{' '.join(map(str, one.args))} ended")  # type: ignore[arg-type]
    return json.loads(line)


def plain_forward(model: AnomalyCLIPModel, pixel_values: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Both paths for every token of every layer, with full attention matrices; an independent float32 reference."""
    import torch
    from torch import nn

    from anomalyclip_hf import compute_similarity_maps

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
    maps = compute_similarity_maps(patches, text_embeds, config.temperature, grid, size)
    return image @ text_embeds.T / config.temperature, maps[:, :, 1].mean(dim=1)


def load_exported(name: str, folder: Path) -> tuple[Callable[[np.ndarray], Any], int]:
    """What runs an export on `(B, 3, S, S)` float32, and S, without torch."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # so that its memory does not count
    from anomalyclip_hf.export.engines import load_engine, read_facts

    facts = read_facts(folder / name)
    return load_engine(folder / name, facts), facts["input"]["shape"][-1]


def load_torch(name: str, folder: Path) -> tuple[Callable[[np.ndarray], Any], int]:
    """The same for a form of the model in torch; a score or map that isn't computed is None."""
    import torch

    from anomalyclip_hf import AnomalyCLIPModel

    form, _, dtype = name.rpartition("-")
    dtype = "float32" if name == "plain" else dtype
    model = AnomalyCLIPModel.from_pretrained(folder / MODEL, dtype=getattr(torch, dtype)).eval()
    embeds = model.get_prompt_embeds()
    outputs = form if form in ("score", "maps") else "all"
    forward = torch.compile(model, fullgraph=True, dynamic=False) if form == "compiled" else model

    def run(pixels: np.ndarray) -> tuple[np.ndarray | None, ...]:
        with torch.no_grad():
            if name == "plain":
                return tuple(one.numpy() for one in plain_forward(model, torch.from_numpy(pixels), embeds))
            found = forward(torch.from_numpy(pixels), text_embeds=embeds, outputs=outputs, return_dict=True)
        return tuple(found[key].numpy() if key in found else None for key in ("logits", "anomaly_maps"))

    return run, model.config.image_size


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    run, side = (load_exported if name in EXPORTED else load_torch)(name, folder)
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        pixels, path = pixel_values(int(line), side), folder / f"{name}-{int(line)}.npz"
        start = time.perf_counter()
        logits, maps = run(pixels)
        taken = time.perf_counter() - start
        score = np.empty(0) if logits is None else 1 / (1 + np.exp(np.float64(logits[:, 0]) - logits[:, 1]))
        np.savez(path, score=score, map=np.empty(0) if maps is None else maps)
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
        reply = {"seconds": taken, "peak_gb": peak, "outputs": str(path)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
