"""A tiny model, exported once to each format."""

import os

import pytest
from filelock import FileLock

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor
from tiny_models import make_tiny_clip, randomize

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "pt2": ()}


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> str:
    """Folder of a model of two layers (42 px, feature layers 1 and 2): tracing takes its time by the layer."""
    folder = str(tmp_path_factory.mktemp("small_checkpoint"))
    make_tiny_clip(vision={"num_hidden_layers": 2}).save_pretrained(folder)
    model = AnomalyCLIPModel.from_pretrained(folder, image_size=42, feature_layers=[1, 2], prompt_length=5)
    randomize(model.prompt_learner, seed=1)
    model.save_pretrained(folder)
    AnomalyCLIPProcessor(size={"height": 42, "width": 42}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported_folders(small_checkpoint, tmp_path_factory):
    """Function `(format)` -> a folder of the tiny model in that format, with a threshold of each kind. Read only."""
    from anomalyclip_hf.export import export_model

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared  # one export for all workers

    def export(kind: str) -> str:
        for package in PACKAGES[kind]:
            pytest.importorskip(package)
        folder = shared / f"exported-{kind}"
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                model = AnomalyCLIPModel.from_pretrained(small_checkpoint, image_threshold=0.5, pixel_threshold=0.5)
                processor = AnomalyCLIPProcessor.from_pretrained(small_checkpoint, sigma=2.0)
                export_model(model, processor, folder, kind)
        return str(folder)

    return export
