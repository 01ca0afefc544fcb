"""Checkpoints where this package isn't installed (trust_remote_code), and a round trip over HTTP between processes."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import anomalyclip_hf
from anomalyclip_hf import AnomalyCLIPModel, ZeroShotAnomalyDetectionPipeline
from anomalyclip_hf.sharing.writing import AUTO_MAP, CUSTOM_PIPELINES
from hub_server import TOKEN, LocalHub
from tiny_models import make_tiny_clip

SOURCE = Path(anomalyclip_hf.__file__).parent
_NAMES = "configuration image_processing inputs loading loss modeling options pipeline prompts"
TRAVELLING = {f"{name}_anomalyclip" for name in _NAMES.split()}
MAX_BYTES = 148_500

PUSH = """
import sys, torch
from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor
model = AnomalyCLIPModel.from_pretrained("openai/tiny", image_size=42, feature_layers=[2, 4], pixel_threshold=0.25)
torch.manual_seed(3)
torch.nn.init.normal_(model.prompt_learner.context)
processor = AnomalyCLIPProcessor(size={"height": 42, "width": 42}, sigma=2.0)
model.push_prompts_to_hub("me/prompts", processor=processor, save_code=True)
model.push_to_hub("me/full", processor=processor, private=True, save_code=True)
print(model.config.base_model_revision)
"""

LOAD = """
import base64, importlib.util, io, json, sys
assert importlib.util.find_spec("anomalyclip_hf") is None
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, pipeline
trust = {"trust_remote_code": True}
image = Image.radial_gradient("L").resize((50, 40)).convert("RGB")
image.save(png := io.BytesIO(), "PNG")
found = {}
for name in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(name, **trust)
    assert type(processor).__name__ == type(AutoImageProcessor.from_pretrained(name, **trust)).__name__
    model = AutoModel.from_pretrained(name, **trust)
    detector = pipeline(model=name, **trust)
    result = detector(image)
    found[name] = {
        "config": type(AutoConfig.from_pretrained(name, **trust)).__name__,
        "size": processor.size["height"], "sigma": processor.sigma, "task": detector.task,
        "score": result["score"], "shape": list(result["anomaly_map"].shape),
        "map": float(result["anomaly_map"].mean()),
        "mask": float(result["mask"].mean()),
        "module": type(model).__module__.split(".")[0], "base": model.config.base_model_name_or_path,
        "direct": model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0, 1].item(),
    }
    if not model.config.vision_only:
        model.load_prompts(name)
    address = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    assert abs(detector(address)["score"] - result["score"]) < 1e-5
    found[name]["needs"] = []
    calls = [(model.save_prompts, "x"), (model.set_profile, "x"), (model.set_references, [image])]
    calls += [(lambda size: detector(image, resize="tile"), 0), (detector, image.convert("I"))]
    for call, argument in calls:
        try:
            call(argument)
        except ImportError as error:
            found[name]["needs"].append(str(error))
model.save_pretrained("saved")
inputs = processor(image, return_tensors="pt")
again, before = (one(**inputs).logits for one in (AutoModel.from_pretrained("saved", **trust), model))
assert (again - before).abs().max() < 1e-4
print(json.dumps(found))
"""


def run(code: str, *arguments: str, package: bool = True, **environment: str) -> str:
    """Run code in a new process; without the package, site-packages are read but not the links in it (-S)."""
    env = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    if not package:
        env["PYTHONPATH"] = sysconfig.get_paths()["purelib"]
    command = [sys.executable, *([] if package else ["-S"]), "-c", code, *arguments]
    done = subprocess.run(
        command, env=env, cwd=environment["HF_HOME"], capture_output=True, text=True, timeout=300, input=""
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def without_package() -> bool:
    """Whether `-S` hides the package here; not so if it was installed as a copy."""
    return not Path(sysconfig.get_paths()["purelib"], "anomalyclip_hf").exists()


needs_hiding = pytest.mark.skipif(not without_package(), reason="the package is installed as a copy in site-packages")


def imports(name: str) -> tuple[set[str], set[str]]:
    """(files, packages) that a travelling file imports, everywhere in it."""
    files, packages = set(), set()
    for node in ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level in (0, 1) and node.module, f"{name}: `from . import x` does not travel"
            (files if node.level else packages).add(node.module if node.level else node.module.split(".")[0])
    return files, packages


def test_travelling_files_import_one_another_and_what_transformers_needs():
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub"}
    reached, queue = set(), [*{reference.split(".")[0] for reference in AUTO_MAP.values()}, "pipeline_anomalyclip"]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            files, packages = imports(f"{name}.py")
            assert not packages - allowed, f"{name} imports {packages - allowed}"
            queue += files
    assert reached == TRAVELLING
    assert sum((SOURCE / f"{name}.py").stat().st_size for name in reached) <= MAX_BYTES


def test_code_travels_when_asked_for(tiny_model, tiny_processor, tmp_path):
    for save in (tiny_model.save_pretrained, tiny_model.save_prompts):
        plain, coded = (tmp_path / f"{save.__name__}-{kind}" for kind in ("plain", "coded"))
        save(plain)
        save(coded, save_code=True)
        assert not list(plain.glob("*.py")) and "auto_map" not in (plain / "config.json").read_text()
        assert {path.stem for path in coded.glob("*.py")} == TRAVELLING
        assert json.loads((coded / "config.json").read_text())["auto_map"] == AUTO_MAP
        # Loaded with the package at hand, its own code is used and not passed on.
        AnomalyCLIPModel.from_pretrained(coded).save_pretrained(plain)
        assert "auto_map" not in (plain / "config.json").read_text()


def test_code_travels_after_register_for_auto_class(tiny_model, tmp_path, monkeypatch):
    for one in (type(tiny_model), type(tiny_model.config)):
        monkeypatch.setattr(one, "_auto_class", None)
    type(tiny_model).register_for_auto_class()
    tiny_model.save_pretrained(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.py")} == TRAVELLING
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_code_of_a_checkpoint_does_all_with_the_package(tiny_model, tiny_processor, make_image, tmp_path):
    tiny_model.save_pretrained(tmp_path / "full", save_code=True)
    tiny_processor.save_pretrained(tmp_path / "full")
    tiny_model.save_prompts(tmp_path / "prompts", tiny_processor)
    classes = [
        get_class_from_dynamic_module(f"{module}_anomalyclip.{name}", tmp_path / "full")
        for module, name in (("modeling", "AnomalyCLIPModel"), ("pipeline", "ZeroShotAnomalyDetectionPipeline"))
    ]
    travelled = classes[0].from_pretrained(tmp_path / "full")
    assert type(travelled).__module__.startswith("transformers_modules.")
    own, other = ZeroShotAnomalyDetectionPipeline(tiny_model), classes[1](travelled)
    good, image = make_image(), Image.radial_gradient("L").resize((50, 40))
    for options in ({}, {"references": [good]}, {"resize": "tile", "tile_size": 32}, {"pixel_threshold": 0.3}):
        expected, found = own(image, **options), other(image, **options)
        assert found["score"] == pytest.approx(expected["score"], abs=1e-6), options
        assert abs(found["anomaly_map"] - expected["anomaly_map"]).max() < 1e-6
    travelled.set_references([good])
    travelled.add_prompts("first")
    travelled.add_prompts("second", tmp_path / "prompts")
    travelled.set_prompts("second")
    travelled.load_prompts(travelled.get_prompts())
    travelled.to_free_prompts().save_pretrained(tmp_path / "free")
    with pytest.raises(ValueError, match="dpam_layers=50 but the vision tower has 4 layers"):
        type(travelled.config)(**{**travelled.config.to_dict(), "dpam_layers": 50})


def test_named_classes_exist():
    pipelines = [entry["impl"] for entry in CUSTOM_PIPELINES.values()]
    for reference in [*AUTO_MAP.values(), *pipelines]:
        module, name = reference.split(".")
        classes = [
            n.name for n in ast.parse((SOURCE / f"{module}.py").read_text()).body if isinstance(n, ast.ClassDef)
        ]
        assert name in classes


@pytest.mark.slow
@needs_hiding
def test_round_trip(tiny_clip_dir, tiny_model, tiny_processor, tmp_path, monkeypatch):
    """Push in one process; load in a second, with an empty cache and without the package; a third time offline."""
    monkeypatch.setattr(type(tiny_processor), "_auto_class", None)
    homes = {name: tmp_path / name for name in ("pusher", "loader")}
    folders = {name: str(tmp_path / name) for name in ("full", "prompts", "vision")}
    for home in homes.values():
        home.mkdir()
    save_locally(tiny_model, tiny_processor, folders)
    with LocalHub() as hub:
        hub.create("openai/tiny")
        base = hub.commit("openai/tiny", "main", {p.name: p.read_bytes() for p in Path(tiny_clip_dir).iterdir()})
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        assert run(PUSH, HF_HOME=str(homes["pusher"]), **online) == base
        # Later commits of the base model do not matter: prompts remember the revision.
        make_tiny_clip(seed=9).save_pretrained(tmp_path / "other")
        hub.commit("openai/tiny", "main", {p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()})

        names = ["me/prompts", "me/full"]
        loader = {"package": False, "HF_HOME": str(homes["loader"])}
        found = json.loads(run(LOAD, *names, *folders.values(), **loader, **online))
        # Weights went by upload and redirect, and the base model came at its revision.
        assert {"PUT", "GET"} <= {method for method, path in hub.requests if path.startswith("/lfs/")}
        assert ("GET", f"/openai/tiny/resolve/{base}/config.json") in hub.requests
        config = json.loads(hub.files("me/prompts")["config.json"])
        assert (config["base_model_name_or_path"], config["base_model_revision"]) == ("openai/tiny", base)
        assert hub.repos["me/full"]["private"] and not hub.repos["me/prompts"]["private"]
        assert "model.safetensors" not in hub.files("me/prompts") and "README.md" in hub.files("me/prompts")

    check_local(found, folders, tiny_model, tiny_processor)
    prompts, full = found["me/prompts"], found["me/full"]
    assert prompts["score"] == pytest.approx(full["score"], abs=1e-6)
    assert prompts["map"] == pytest.approx(full["map"], abs=1e-6) and prompts["base"] == "openai/tiny"
    assert prompts["sigma"] == 2.0 and prompts["size"] == 42

    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN}
    again = json.loads(run(LOAD, *names, **loader, **offline))
    assert again["me/full"]["score"] == pytest.approx(full["score"], abs=1e-6)
    assert again["me/prompts"]["score"] == pytest.approx(full["score"], abs=1e-6)


def save_locally(model, processor, folders):
    type(processor).register_for_auto_class()  # saved apart from the model, it brings its code as transformers' own do
    model.config.pixel_threshold = 0.25
    for name, one in (("full", model), ("vision", model.to_vision_only())):
        processor.save_pretrained(folders[name])
        one.save_pretrained(folders[name], save_code=True)
    model.save_prompts(folders["prompts"], processor, save_code=True)


def check_local(found, folders, model, processor):
    image = Image.radial_gradient("L").resize((50, 40)).convert("RGB")
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0, 1].item()
    for folder in folders.values():
        one = found[folder]
        assert one["score"] == pytest.approx(expected, abs=1e-6) and one["direct"] == pytest.approx(expected, abs=1e-6)
        assert one["shape"] == [40, 50] and one["size"] == 42 and one["sigma"] == 4.0
        assert one["module"] == "transformers_modules" and one["config"] == "AnomalyCLIPConfig"
        assert one["task"] == "zero-shot-anomaly-detection" and 0 <= one["mask"] <= 1
        assert len(one["needs"]) == 5
        assert all("pip install anomalyclip_hf" in message for message in one["needs"])
