"""What a wheel holds, and what it needs."""

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from setuptools import Distribution
from transformers import pipeline

import anomalyclip_hf
from anomalyclip_hf.options_anomalyclip import installed

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anomalyclip_hf"
# Modules under other names than their distributions', and those that datasets and huggingface_hub bring with them.
MODULES = {
    "pillow": {"PIL"},
    "datasets": {"datasets", "pyarrow"},
    "huggingface_hub": {"huggingface_hub", "yaml"},
    "scikit-image": {"skimage", "tifffile"},
}


@pytest.fixture
def distribution(monkeypatch):
    """The project as setuptools reads it from pyproject.toml."""
    monkeypatch.chdir(ROOT)
    project = Distribution({"script_name": "setup.py"})
    project.parse_config_files()
    return project


def test_a_wheel_holds_the_package_with_its_assets_and_nothing_else(distribution):
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    built = {Path(path).relative_to(command.build_lib) for path in command.get_outputs(include_bytecode=False)}
    files = {path.relative_to(ROOT / "src") for path in PACKAGE.rglob("*") if path.is_file()}
    assert built == {path for path in files if "__pycache__" not in path.parts}
    demo = {path.name for path in built if path.parts[:3] == (PACKAGE.name, "assets", "demo")}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= demo


def test_the_version_is_the_same_everywhere(distribution):
    version = anomalyclip_hf.__version__
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert f"anomalyclip_hf-{version}-py3-none-any.whl" in (ROOT / "README.md").read_text()


def imported(path: Path) -> set[str]:
    """Top names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


def test_the_package_imports_itself_and_what_it_declares(distribution):
    extras = [text for name, texts in distribution.extras_require.items() if name != "dev" for text in texts]
    names = [re.split(r"[^\w-]", text)[0] for text in [*distribution.install_requires, *extras]]
    known = set().union(sys.stdlib_module_names, {PACKAGE.name}, *(MODULES.get(name, {name}) for name in names))
    undeclared = {path.name: found for path in PACKAGE.rglob("*.py") if (found := imported(path) - known)}
    assert undeclared == {}


# Rooms of the package, lowest first: an import goes down, never up or to the side.
FLOORS = [
    {"_lazy", "assets", "loss_anomalyclip", "inputs_anomalyclip", "options_anomalyclip"},
    {"configuration_anomalyclip", "data"},
    {"image_processing_anomalyclip", "rules"},
    {"prompts_anomalyclip", "processing_anomalyclip", "references_anomalyclip"},
    {"loading_anomalyclip"},
    {"modeling_anomalyclip", "sharing"},
    {"pipeline_anomalyclip", "conversion"},
    {"scoring"},
    {"evaluation"},
    {"export"},
    {"training", "app"},
    {"cli"},
]
ENTRIES = {"__init__.py", "__main__.py", "data/__main__.py"}  # of the package and of `python -m`


def rooms_imported(path: Path) -> set[str]:
    """Rooms of the package that a file imports from, anywhere in it; the package itself is none."""
    folder, found = path.relative_to(PACKAGE).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            names = [name.name for name in node.names] if base == [""] else base[:1]
            found |= {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    return found


def test_imports_go_one_way():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        room = name.split("/")[0].removesuffix(".py")
        for other in rooms_imported(path) if name not in ENTRIES else ():
            if other != room and floor[other] >= floor[room]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_what_travels_leads_home_by_names_that_are_there():
    ways = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("installed", "if_installed"):
                ways |= {(path.name, one.value) for one in node.args if isinstance(one, ast.Constant)}
    assert {"scoring.profiles", "data.reader", "rules", "sharing.weights"} < {module for _, module in ways}
    assert [way for way in ways if not way[0].endswith("_anomalyclip.py") and way[0] != "hub.py"] == []
    assert [way for way in ways if importlib.util.find_spec(f"anomalyclip_hf.{way[1]}") is None] == []


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("evaluation.thresholds", "scoring.thresholds", "save_thresholds"),
        ("evaluation.calibration", "scoring.calibration", "calibrate_from_normal"),
        ("evaluation.prediction", "scoring.prediction", "predict_files"),
        ("evaluation.files", "data.files", "atomic_path"),
        ("data.masks", "data.images", "read_mask"),
        ("references_anomalyclip", "sharing.references", "make_references"),
    ],
)
def test_modules_that_moved_are_found_for_one_release(old, new, name):
    module = importlib.import_module(f"anomalyclip_hf.{old}")
    with pytest.warns(FutureWarning, match=rf"anomalyclip_hf.{old}.{name} is now anomalyclip_hf.{new}.{name}"):
        assert getattr(module, name) is getattr(importlib.import_module(f"anomalyclip_hf.{new}"), name)
    with pytest.raises(AttributeError):
        module.nothing  # noqa: B018


def test_an_image_is_scored_without_scipy_and_scikit_image(monkeypatch, tiny_checkpoint, make_image):
    detector, image = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint), make_image()
    for name in ("scipy", "scipy.ndimage", "skimage", "skimage.draw", "skimage.measure"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    result = detector(image, image_threshold=0.5, roi=[[0, 0], [9, 0], [9, 9]], min_area=4)
    assert set(result) == {"score", "label", "anomaly_map"}
    with pytest.raises(ImportError, match="regions need scikit-image: pip install scikit-image"):
        detector(image, pixel_threshold=0.5)


def test_code_of_a_checkpoint_says_whether_the_package_is_absent_or_old(monkeypatch):
    with pytest.raises(ImportError, match="pip install anomalyclip_hf -U, for the one installed lacks it") as found:
        installed("scoring.of_tomorrow")
    assert not isinstance(found.value, ModuleNotFoundError)  # which stands for none: then there are other ways
    for name in [name for name in sys.modules if name.partition(".")[0] == "anomalyclip_hf"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=r"pip install anomalyclip_hf$"):
        installed("scoring.regions")


class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "anomalyclip_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
