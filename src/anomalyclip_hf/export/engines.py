"""What an exported folder holds, and the engines that run its graph.

Importing this needs numpy only; an engine is imported when a graph is loaded.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FACTS = "anomalyclip_export.json"
INPUT, OUTPUTS = "pixel_values", ("logits", "anomaly_maps")
PROGRAMS = {"onnx": "model.onnx", "openvino": "openvino_model.xml", "pt2": "model.pt2"}  # format -> file
# What a format can be computed in: ONNX Runtime has no bfloat16 on CPUs, and torch takes it without an export.
PRECISIONS = {"onnx": ("float32", "int8"), "openvino": ("float32", "bfloat16", "int8"), "pt2": ("float32",)}
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch"}  # what runs a format

# pixel_values (B, 3, S, S) float32 -> logits (B, 2), anomaly_maps (B, S, S), both float32
Engine = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether a folder is one that `anomalyclip export` wrote."""
    return Path(folder, FACTS).is_file()


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """What is said of an exported graph: `format`, `precision`, `files`, `input`, `outputs`, ...

    Raises:
        OSError: there is no exported model in the folder, or a file of it is missing.
        ValueError: its description is damaged, or of a later version.
    """
    if not is_exported(folder):
        raise FileNotFoundError(f"{os.fspath(folder)!r} has no {FACTS}: give a folder that `anomalyclip export` wrote")
    facts = read_json(folder, FACTS)
    if facts.get("format") not in PROGRAMS or facts.get("precision") not in PRECISIONS[facts["format"]]:
        known = ", ".join(PROGRAMS)
        raise ValueError(
            f"{FACTS} of {os.fspath(folder)} names format={facts.get('format')!r}, precision="
            f"{facts.get('precision')!r}; this version knows {known}: export the model again"
        )
    multiple, given = multiple_of_sides(facts), facts.get("input")
    if not isinstance(given, dict | type(None)) or not (multiple is None or (type(multiple) is int and multiple > 0)):
        raise ValueError(f"{FACTS} of {os.fspath(folder)} is damaged (input={given!r}): export the model again")
    if missing := [name for name in facts.get("files", {}) if not Path(folder, name).is_file()]:
        raise FileNotFoundError(f"{os.fspath(folder)} lacks {', '.join(missing)}: copy the whole folder")
    return facts


def read_json(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    """The fields of a JSON file of a folder.

    Raises:
        OSError: there is no such file.
        ValueError: it holds no fields.
    """
    try:
        fields = json.loads(Path(folder, name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} of {os.fspath(folder)} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name} of {os.fspath(folder)} holds a {type(fields).__name__}, expected fields by name")
    return fields


def load_engine(folder: str | os.PathLike, facts: Mapping[str, Any], num_threads: int | None = None) -> Engine:
    """The engine that runs an exported graph on the CPU; several threads may call it at once.

    Args:
        folder: that was exported.
        facts: of [`read_facts`].
        num_threads (`int`, *optional*): of the engine; its own choice if absent.

    Raises:
        ImportError: the engine isn't installed.
        ValueError: the graph can't be read.
    """
    kind, path = facts["format"], Path(folder, PROGRAMS[facts["format"]])
    try:
        package = importlib.import_module(PACKAGES[kind])
    except ImportError as error:
        raise ImportError(f"{path} needs {PACKAGES[kind]}: pip install {PACKAGES[kind]}") from error
    try:
        engine = _ENGINES[kind](package, path, facts["precision"], num_threads)
    except Exception as error:  # engines have kinds of their own
        raise ValueError(f"{path} can't be loaded: {' '.join(str(error).split())[:500]}") from error
    multiple = multiple_of_sides(facts)
    if multiple is None:
        return engine

    def run(pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = pixel_values.shape[2:]
        if min(height, width) < 2 * multiple or height % multiple or width % multiple:
            raise ValueError(
                f"an input of {height}x{width} pixels, but the exported graph takes sides of {2 * multiple}, "
                f"{3 * multiple}, ...: give resize='square' for an image this narrow"
            )
        return engine(pixel_values)

    return run


def multiple_of_sides(facts: Mapping[str, Any]) -> int | None:
    """What height and width of a graph's input are multiples of, twice that or more; None where both are fixed."""
    given = facts.get("input")
    return given.get("sides_are_multiples_of") if isinstance(given, dict) else None


def _load_onnx(onnxruntime: Any, path: Path, precision: str, num_threads: int | None) -> Engine:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, maps = session.run(list(OUTPUTS), {INPUT: pixel_values})
        return logits, maps

    return run


def _load_openvino(openvino: Any, path: Path, precision: str, num_threads: int | None) -> Engine:
    # Said aloud: by itself it computes in bfloat16 on CPUs that have instructions for it. What int8 leaves as it was,
    # half of its time in attention, may be in bfloat16: that costs nothing beside what int8 does.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16"}
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = _core(openvino).compile_model(str(path), "CPU", settings)

    def run(pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = compiled.create_infer_request().infer({INPUT: pixel_values})
        return found[OUTPUTS[0]], found[OUTPUTS[1]]

    return run


@cache
def _core(openvino: Any) -> Any:
    """The one of this process. Each puts up a stack for signals and, when it goes, puts back the one it found; with
    two, that can be one that is gone, and the next signal (a child's end is one) kills the process."""
    return openvino.Core()


def _load_pt2(torch: Any, path: Path, precision: str, num_threads: int | None) -> Engine:
    module = torch.export.load(path).module()
    if num_threads:
        torch.set_num_threads(num_threads)

    def run(pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            found = module(**{INPUT: torch.from_numpy(pixel_values)})
        return found[OUTPUTS[0]].numpy(), found[OUTPUTS[1]].numpy()

    return run


_ENGINES: dict[str, Callable[[Any, Path, str, int | None], Engine]] = {
    "onnx": _load_onnx,
    "openvino": _load_openvino,
    "pt2": _load_pt2,
}
