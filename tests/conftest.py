"""What all tests share: no network, a tiny random CLIP built once, and the authors' numbers."""

import copy
import importlib.util
import json
import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_models import make_tiny_clip, randomize

FIXTURES = Path(__file__).parent / "fixtures"

torch.set_num_threads(1)  # models this small only get slower with more


@pytest.fixture(autouse=True)
def _native_half_precision(monkeypatch):
    """Whatever this machine's CPU is, half precision is loaded as such; tests/test_cpu.py shows what happens else."""
    monkeypatch.setattr("anomalyclip_hf.sharing.weights.is_emulated", lambda dtype: False)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt. It does not where it was ignored when Python started, as shells have it for
    what a script puts into the background with `&`; commands keep to that, as is the custom."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory) -> str:
    """Folder of a tiny random CLIP checkpoint (28 px, patch 7, 4 + 4 layers, width 32, no tokenizer). Read only."""
    folder = tmp_path_factory.mktemp("tiny_clip")
    make_tiny_clip().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def _tiny_model(tiny_clip_dir):
    from anomalyclip_hf import AnomalyCLIPModel

    model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, image_size=42, feature_layers=[2, 4], prompt_length=5)
    randomize(model.prompt_learner, seed=1)
    return model.eval()


@pytest.fixture
def tiny_model(_tiny_model):
    """A fresh copy of a tiny AnomalyCLIP (42 px input, feature layers 2 and 4, 5 learned words)."""
    return copy.deepcopy(_tiny_model)


@pytest.fixture
def tiny_processor():
    """The processor of `tiny_model`."""
    from anomalyclip_hf import AnomalyCLIPProcessor

    return AnomalyCLIPProcessor(size={"height": 42, "width": 42})


@pytest.fixture(scope="session")
def tiny_checkpoint(_tiny_model, tmp_path_factory) -> str:
    """Folder of `tiny_model` and its processor, as `save_pretrained` writes them. Read only."""
    from anomalyclip_hf import AnomalyCLIPProcessor

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    copy.deepcopy(_tiny_model).save_pretrained(folder)
    AnomalyCLIPProcessor(size={"height": 42, "width": 42}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_image():
    """Function `(width, height, seed)` -> a random RGB image with some structure."""

    def make(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
        generator = np.random.default_rng(seed)
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        return coarse.resize((width, height), Image.Resampling.BICUBIC)

    return make


class Golden:
    """One case of the authors' numbers: `tensors`, `clip` (the backbone's configuration) and a loaded model."""

    def __init__(self, name: str):
        from safetensors import safe_open

        with safe_open(FIXTURES / "golden" / f"{name}.safetensors", "pt") as file:
            self.metadata = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.name, self.checkpoint = name, FIXTURES / "golden" / f"{name}.pth"
        self.clip = json.loads(self.metadata["config"])
        self.inputs = {key: self.tensors[key].float() for key in ("pixel_values", "masks")}
        self.inputs["labels"] = self.tensors["labels"]

    def backbone(self) -> dict[str, torch.Tensor]:
        """Weights under `CLIPModel`'s names."""
        weights = {key[5:]: value.float() for key, value in self.tensors.items() if key.startswith("clip.")}
        text = self.clip["text_config"]
        embedding = torch.zeros(text["vocab_size"], text["hidden_size"])
        embedding[self.tensors["token_embedding.row_ids"]] = self.tensors["token_embedding.rows"].float()
        return {**weights, "text_model.embeddings.token_embedding.weight": embedding}

    def config(self, **overrides):
        from anomalyclip_hf import AnomalyCLIPConfig

        fields = {
            "feature_layers": json.loads(self.metadata["feature_layers"]),
            "dpam_layers": int(self.metadata["dpam_layers"]),
            "deep_prompt_depth": int(self.metadata["deep_prompt_depth"]),
            "temperature": float(self.metadata["temperature"]),
            "image_size": self.tensors["pixel_values"].shape[-1],
            "prompt_token_ids": self.tensors["input_ids"].tolist(),
            **{key: self.clip[key] for key in ("text_config", "vision_config", "projection_dim")},
        }
        return AnomalyCLIPConfig(**{**fields, **overrides})

    def model(self, attn_implementation: str = "sdpa"):
        from anomalyclip_hf import AnomalyCLIPModel

        model = AnomalyCLIPModel._from_config(self.config(), attn_implementation=attn_implementation)
        weights = self.backbone()
        weights["prompt_learner.context"] = torch.stack([self.tensors["ctx_normal"], self.tensors["ctx_abnormal"]])
        weights["prompt_learner.deep_prompts"] = self.tensors["deep_prompts"]
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and all("position_ids" in name or name == "logit_scale" for name in missing)
        return model.eval()


@pytest.fixture(scope="session")
def load_script():
    """Function `(name)` -> the module `scripts/<name>.py`, anew for each call."""

    def load(name: str):
        path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def load_golden():
    """Function `(name)` -> [`Golden`]."""
    cases: dict[str, Golden] = {}

    def load(name: str) -> Golden:
        if name not in cases:
            cases[name] = Golden(name)
        return cases[name]

    return load
