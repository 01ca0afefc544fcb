"""A tiny model, exported once to each format."""

import pytest

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor

FORMATS = ("onnx", "openvino", "pt2")
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "pt2": ()}


@pytest.fixture(scope="session")
def exported_folders(tiny_checkpoint, tmp_path_factory):
    """Function `(format)` -> a folder of the tiny model in that format, with a threshold of each kind. Read only."""
    from anomalyclip_hf.export import export_model

    folders: dict[str, str] = {}

    def export(kind: str) -> str:
        for package in PACKAGES[kind]:
            pytest.importorskip(package)
        if kind not in folders:
            model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint, image_threshold=0.5, pixel_threshold=0.5)
            processor = AnomalyCLIPProcessor.from_pretrained(tiny_checkpoint, sigma=2.0)
            folder = tmp_path_factory.mktemp("exported") / kind
            export_model(model, processor, folder, kind)
            folders[kind] = str(folder)
        return folders[kind]

    return export
