"""Exported models give what the model gives, with and without torch, and wherever commands take a model."""

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import pipeline

from anomalyclip_hf import AnomalyCLIPExported, AnomalyCLIPModel, AnomalyCLIPProcessor
from anomalyclip_hf.cli import main
from anomalyclip_hf.export import ExportedModel, export_model, exporting
from anomalyclip_hf.export.certificate import refuse_loss

FORMATS = ("onnx", "openvino", "pt2")
BLOCKED = ("torch", "transformers", "huggingface_hub", "datasets", "accelerate", "scipy", "skimage", "safetensors")
OPTIONS = {"image_threshold": 0.4, "pixel_threshold": 0.45, "min_area": 3, "roi": [[0, 0], [30, 0], [30, 30]]}


@pytest.fixture
def images(make_image):
    gray, clear = make_image(30, 61, 2).convert("L"), make_image(42, 42, 3).convert("RGBA")
    return [make_image(), make_image(120, 33, 1), gray, clear]


@pytest.fixture
def detector(small_checkpoint):
    """The pipeline of the model that was exported."""
    model = AnomalyCLIPModel.from_pretrained(small_checkpoint, image_threshold=0.5, pixel_threshold=0.5)
    processor = AnomalyCLIPProcessor.from_pretrained(small_checkpoint, sigma=2.0)
    return pipeline("zero-shot-anomaly-detection", model=model, image_processor=processor)


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"], atol=1e-5)
    assert found["anomaly_map"].dtype == np.float32
    if "mask" in expected:
        np.testing.assert_array_equal(found["mask"], expected["mask"])
        assert [one["box"] for one in found["regions"]] == [one["box"] for one in expected["regions"]]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_runtime_gives_what_the_pipeline_gives(kind, exported_folders, detector, images):
    exported = AnomalyCLIPExported.from_pretrained(exported_folders(kind), num_threads=1)
    for options in ({}, {"sigma": 0.0, "batch_size": 3}, {"sigma": 5, **OPTIONS}):
        for found, expected in zip(exported(images, **options), detector(images, **options), strict=True):
            assert_same(found, expected)
    assert_same(exported(images[0]), detector(images[0]))
    stream = exported(iter(images), batch_size=2)
    assert [one["score"] for one in stream] == pytest.approx([one["score"] for one in exported(images)])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_says_what_it_holds(kind, exported_folders):
    folder = Path(exported_folders(kind))
    facts, certificate = (
        json.loads((folder / name).read_text()) for name in ("anomalyclip_export.json", "certificate.json")
    )
    assert facts["input"] == {"name": "pixel_values", "shape": ["batch", 3, 42, 42], "dtype": "float32"}
    assert list(facts["outputs"]) == ["logits", "anomaly_maps"]
    for name, digest in facts["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    if kind == "openvino":  # so that programs in C++ can ask the graph for its size
        graph = importlib.import_module(kind).Core().read_model(folder / "openvino_model.xml")
        assert str(graph.input("pixel_values").partial_shape) == "[?,3,42,42]"
    assert certificate["num_images"] == 8 and certificate["tolerance"] == 1e-4 and certificate["cpu"]
    assert certificate["max_score_difference"] < 1e-5 and certificate["max_map_difference"] < 1e-5
    assert certificate["files"] == facts["files"] and "torch" in certificate["versions"]
    stored = json.loads((folder / "config.json").read_text())
    assert (stored["image_threshold"], stored["vision_only"]) == (0.5, True)
    assert json.loads((folder / "preprocessor_config.json").read_text())["sigma"] == 2.0


def run_blocked(code: str, *arguments: str, blocked=BLOCKED) -> str:
    """What a program prints in an interpreter that can't import the packages blocked."""
    start = f"""
    import sys
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {blocked!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Blocked())
    """
    program = textwrap.dedent(start) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_image_is_scored_without_torch_and_transformers(kind, exported_folders, detector, make_image, tmp_path):
    make_image().save(tmp_path / "image.png")
    code = """
        import json
        from anomalyclip_hf.export.runtime import AnomalyCLIPExported
        from anomalyclip_hf import AnomalyCLIPExported as same
        assert same is AnomalyCLIPExported
        result = AnomalyCLIPExported.from_pretrained(sys.argv[1])(sys.argv[2])
        assert "torch" not in sys.modules and "transformers" not in sys.modules
        print(json.dumps({key: getattr(value, "tolist", lambda: value)() for key, value in result.items()}))
    """
    found = json.loads(run_blocked(code, exported_folders(kind), str(tmp_path / "image.png")))
    expected = detector(str(tmp_path / "image.png"))
    assert list(found) == ["score", "anomaly_map", "label", "mask"]  # regions need scikit-image
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5) and found["label"] == expected["label"]
    np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"], atol=1e-5)
    np.testing.assert_array_equal(found["mask"], expected["mask"])


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_what_needs_torch_says_so_where_it_is_missing(missing):
    code = """
        import anomalyclip_hf
        print(anomalyclip_hf.__version__, "AnomalyCLIPModel" in dir(anomalyclip_hf))
        for name in ("AnomalyCLIPModel", "load_anomaly_dataset"):
            try:
                getattr(anomalyclip_hf, name)
            except ImportError as error:
                print(error)
        try:
            from anomalyclip_hf import AnomalyCLIPProcessor
        except ImportError as error:
            print(error)
    """
    lines = run_blocked(code, blocked=(missing,)).splitlines()
    assert lines[0].endswith("True") and len(lines) == 4
    for name, line in zip(("Model", "load_anomaly_dataset", "Processor"), lines[1:], strict=True):
        assert f"{name} needs {missing}, which isn't installed: pip install" in line


def test_columns_of_tables_keep_their_order(exported_folders, images, tmp_path):
    exported = AnomalyCLIPExported.from_pretrained(exported_folders("openvino"))
    paths = [str(tmp_path / f"{place}.png") for place in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    expected = [one["score"] for one in exported(images)]
    column = datasets.Dataset.from_dict({"image": images}, datasets.Features(image=datasets.Image()))["image"]
    for several in (column, pd.Series(paths, index=range(len(paths))[::-1]), np.array(paths)):
        assert [one["score"] for one in exported(several)] == pytest.approx(expected, abs=1e-6)


def test_threads_get_what_one_gets(exported_folders, images):
    exported = AnomalyCLIPExported.from_pretrained(exported_folders("openvino"))
    expected = [one["score"] for one in exported(images * 4)]
    with ThreadPoolExecutor(4) as pool:
        found = [one["score"] for one in pool.map(exported, images * 4)]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.5}, TypeError, r"unknown arguments \['threshold'\]; known are sigma"),
        ({"pixel_threshold": 2.0}, ValueError, r"pixel_threshold=2.0, expected a score in \[0, 1\]"),
        ({"sigma": 99}, ValueError, "sigma=99, expected 0 to 64 pixels"),
        ({"resize": "tile"}, ValueError, "resize='tile', expected square, which the exported graph takes"),
        ({"resize": "fit"}, ValueError, "resize='fit', expected square, which"),
        ({"batch_size": 0}, ValueError, "batch_size=0, expected a whole number above 0"),
        ({"timeout": -1}, ValueError, "timeout=-1, expected a number"),
        ({"window": (5, 2)}, ValueError, "window="),
    ],
)
def test_wrong_options_are_refused(options, error, message, exported_folders, make_image):
    exported = AnomalyCLIPExported.from_pretrained(exported_folders("onnx"))
    with pytest.raises(error, match=message):
        exported(make_image(), **options)


def test_signals_reach_a_process_whose_engines_went(exported_folders):
    code = """
        import signal, subprocess, sys
        from anomalyclip_hf import AnomalyCLIPExported
        signal.signal(signal.SIGCHLD, lambda *_: None)
        first, second = (AnomalyCLIPExported.from_pretrained(sys.argv[1]) for _ in range(2))
        del first
        del second
        memory = [bytearray(1 << 16) for _ in range(1000)]
        print(subprocess.run(["true"]).returncode)
    """
    assert run_blocked(code, exported_folders("openvino"), blocked=()).split() == ["0"]


def test_damaged_folders_are_refused(exported_folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no anomalyclip_export\.json: give a folder that"):
        AnomalyCLIPExported.from_pretrained(tmp_path)
    folder = Path(shutil.copytree(exported_folders("onnx"), tmp_path / "copy"))
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"model\.onnx can't be loaded"):
        AnomalyCLIPExported.from_pretrained(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model\.onnx: copy the whole folder"):
        AnomalyCLIPExported.from_pretrained(folder)
    (folder / "anomalyclip_export.json").write_text('{"format": "tflite"}')
    with pytest.raises(ValueError, match="names format='tflite'"):
        AnomalyCLIPExported.from_pretrained(folder)
    (folder / "anomalyclip_export.json").write_text("{")
    with pytest.raises(ValueError, match=r"anomalyclip_export\.json of .* is no JSON"):
        AnomalyCLIPExported.from_pretrained(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format='tflite', expected one of onnx, openvino, pt2"),
        ({"precision": "bfloat16"}, "precision='bfloat16' with format='onnx', expected one of float32, int8"),
        ({"format": "openvino", "precision": "int8"}, "without calibration_images: int8 of openvino needs images"),
        ({"precision": "int8", "calibration_images": []}, "with calibration_images: int8 of openvino needs images"),
        ({"precision": "int8"}, "only where its cost is known"),
        ({"format": "openvino", "precision": "int8", "calibration_images": [1]}, "only where its cost is known"),
        (
            {"format": "openvino", "precision": "int8", "calibration_images": [], "tolerance": 0.1},
            "calibration_images is empty",
        ),
        ({"tolerance": 0}, "tolerance=0, expected a difference above 0"),
        ({"map_size": (30, 0), "smooth": True}, r"map_size=\(30, 0\), expected height and width in pixels, 1 to 8192"),
        ({"map_size": (30, 40)}, r"map_size=\(30, 40\) with smooth=False"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tiny_model, tiny_processor, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(tiny_model, tiny_processor, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_and_processors_are_left_alone(tiny_model, tiny_processor, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no export: name another folder"):
        export_model(tiny_model, tiny_processor, tmp_path)
    tiny_processor.resize = "tile"
    with pytest.raises(ValueError, match="a graph takes squares of the model's image_size=42, and with"):
        export_model(tiny_model, tiny_processor, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_smoothing_in_the_graph_and_a_bound_that_is_passed(
    small_checkpoint, exported_folders, make_image, tmp_path, monkeypatch
):
    model = AnomalyCLIPModel.from_pretrained(small_checkpoint)
    processor = AnomalyCLIPProcessor.from_pretrained(small_checkpoint, sigma=3.0)
    images, target = [make_image(), make_image(seed=1)], tmp_path / "out"
    shutil.copytree(exported_folders("onnx"), target)
    program = exporting._trace(exporting._scorer(model.to_vision_only(), 3.0, (40, 50)), "pt2")
    monkeypatch.setattr(exporting, "_trace", lambda *given: program)  # which takes seconds
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "EXACT", -1.0)
        with pytest.raises(ValueError, match=r"score differs by .*, more than tolerance=-1: nothing was"):
            export_model(model, processor, target, "pt2", smooth=True, map_size=(40, 50), images=images)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (target / "model.onnx").is_file()
    found = export_model(model, processor, target, "pt2", smooth=True, map_size=(40, 50), images=images)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # in place of the former one, and nothing beside it
    assert not (target / "model.onnx").exists() and (found["images"], found["num_images"]) == ("given", 2)
    detector = pipeline("zero-shot-anomaly-detection", model=model, image_processor=processor)
    assert images[0].size == (50, 40)
    assert_same(AnomalyCLIPExported.from_pretrained(target)(images[0]), detector(images[0]))
    ours = pipeline("zero-shot-anomaly-detection", model=ExportedModel(target))
    assert_same(ours(images[0]), detector(images[0]))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:.* were chosen with resize='square'")
def test_sides_left_open_take_images_resized_to_fit(kind, small_checkpoint, detector, images, tmp_path):
    model, processor = detector.model, detector.image_processor
    certificate = export_model(model, processor, tmp_path / "out", kind, dynamic_size=True)
    assert certificate["max_score_difference"] < 1e-5 and certificate["max_map_difference"] < 1e-5
    exported = AnomalyCLIPExported.from_pretrained(tmp_path / "out")
    ours = pipeline("zero-shot-anomaly-detection", model=ExportedModel(tmp_path / "out"), image_processor=processor)
    for image in (*images, images[0].resize((60, 20)), images[0].resize((20, 60))):
        for resize in ("fit", "square"):
            expected = detector(image, resize=resize, pixel_threshold=0.45)
            assert_same(exported(image, resize=resize, pixel_threshold=0.45), expected)
            assert_same(ours(image, resize=resize, pixel_threshold=0.45), expected)
    for sides in ((40, 42), (0, 42)):
        with pytest.raises(ValueError, match=r"but the exported graph takes sides of 14, 21, \.\.\."):
            ours.model(torch.zeros(1, 3, *sides))
    with pytest.raises(ValueError, match=r"an input of 7x42 pixels.*: give resize='square' for an image this narrow"):
        exported(images[0].resize((100, 9)), resize="fit")
    with pytest.raises(ValueError, match="smooth=True with dynamic_size=True"):
        export_model(model, processor, tmp_path / "other", kind, dynamic_size=True, smooth=True)


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ({"max_score_difference": 0.2}, "score differs by 0.2 from the model's, more than tolerance=0.1"),
        ({"max_map_difference": 0.3}, "map differs by 0.3"),
        ({"metrics": {"loss": {"aupro": 0.006, "pixel_auroc": None}}}, "aupro falls by 0.60 points in precision=int8"),
    ],
)
def test_what_costs_too_much_is_refused(certificate, message):
    sound = {"precision": "int8", "max_score_difference": 0.01, "max_map_difference": 0.01}
    refuse_loss({**sound, "metrics": {"loss": {"aupro": 0.004, "image_auroc": -0.1}}}, 0.1)
    with pytest.raises(ValueError, match=message):
        refuse_loss({**sound, **certificate}, 0.1)


def test_an_exported_model_takes_a_models_place(exported_folders, detector, make_image):
    model = ExportedModel(exported_folders("openvino"))
    assert model.is_exact and model.device == torch.device("cpu") and model.dtype == torch.float32
    ours = pipeline("zero-shot-anomaly-detection", model=model)
    for options in ({}, OPTIONS, {"resize": "tile", "tile_size": 42}):
        assert_same(ours(make_image(80, 60), **options), detector(make_image(80, 60), **options))
    with pytest.raises(ValueError, match=r"was exported for \(B, 3, 42, 42\): resize='square'"):
        model(torch.zeros(1, 3, 28, 42))


@pytest.fixture
def parts(make_image, tmp_path):
    """A folder of normal and anomalous images with masks, small."""
    for kind in ("good", "cut"):
        (tmp_path / "parts" / "test" / kind).mkdir(parents=True)
        for number in range(2):
            image = make_image(48, 40, number + 10 * (kind == "cut"))
            image.save(tmp_path / "parts" / "test" / kind / f"{number}.png")
    (tmp_path / "parts" / "ground_truth" / "cut").mkdir(parents=True)
    for number in range(2):
        mask = Image.new("L", (48, 40))
        mask.paste(255, (5, 5, 15 + number, 12))
        mask.save(tmp_path / "parts" / "ground_truth" / "cut" / f"{number}_mask.png")
    return str(tmp_path / "parts")


def test_commands_take_an_exported_folder(exported_folders, small_checkpoint, parts, tmp_path, capsys):
    folder = str(shutil.copytree(exported_folders("onnx"), tmp_path / "exported"))
    for name, model in (("ours", folder), ("theirs", small_checkpoint)):
        words = [parts, "--model", model, "-o", str(tmp_path / name), "--overlays", "none", "--threshold", "0.5"]
        assert main(["predict", *words]) == 0
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("ours", "theirs")
    )
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-5)
    words = [f"{parts}/test/good", "--model", folder, "-o", folder, "--disable-tqdm"]
    assert main(["calibrate", *words]) == 0
    assert main(["calibrate", *words, "--profile", "bottle"]) == 0
    stored = json.loads((tmp_path / "exported" / "config.json").read_text())
    profile = json.loads((tmp_path / "exported" / "profiles" / "bottle.json").read_text())
    assert AnomalyCLIPExported.from_pretrained(folder).thresholds["image_threshold"] == stored["image_threshold"]
    assert profile["image_threshold"] == pytest.approx(stored["image_threshold"])
    results = {}
    for name, model in (("ours", folder), ("theirs", small_checkpoint)):
        words = ["--model", model, "--sources", f"parts={parts}", "-o", str(tmp_path / f"judged-{name}")]
        assert main(["evaluate", *words, "--disable-tqdm", "--sigma", "2"]) == 0
        results[name] = json.loads((tmp_path / f"judged-{name}" / "results.json").read_text())
    means = [result["datasets"]["parts"]["mean"] for result in results.values()]
    for key in ("image_auroc", "pixel_auroc"):
        assert means[0][key] == pytest.approx(means[1][key], abs=1e-3)
    capsys.readouterr()
    assert main(["predict", parts, "--model", folder, "-o", str(tmp_path / "no"), "--dtype", "float16"]) == 2
    assert "is an exported model, whose graph is fixed: leave out --dtype" in capsys.readouterr().err
    assert main(["push", folder, "me/exported", "--dry-run"]) == 2
    assert f"{folder} is an exported model; push the one that it was made of" in capsys.readouterr().err
    words = ["--model", folder, "--sources", f"parts={parts}", "-o", str(tmp_path / "no"), "--ablations", "dpam=off"]
    assert main(["evaluate", *words]) == 2
    assert "an exported model can be judged as it is alone" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_exports_with_metrics_before_and_after(small_checkpoint, parts, tmp_path, capsys):
    words = ["--model", small_checkpoint, "-o", str(tmp_path / "out"), "--format", "pt2", "--source", parts]
    assert main(["export", *words, "--images", f"{parts}/test/good"]) == 0
    printed = capsys.readouterr().out
    assert "pt2 in float32 written to" in printed and "on 2 given images" in printed and "pixel_auroc:" in printed
    metrics = json.loads((tmp_path / "out" / "certificate.json").read_text())["metrics"]
    assert metrics["before"]["aupro"] == pytest.approx(metrics["after"]["aupro"], abs=1e-3)
    assert metrics["loss"]["aupro"] == metrics["before"]["aupro"] - metrics["after"]["aupro"]
    assert main(["export", "--model", str(tmp_path / "out"), "-o", str(tmp_path / "twice")]) == 2
    assert "is exported already" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("openvino", "bfloat16"), ("openvino", "int8"), ("onnx", "int8")])
def test_less_precise_graphs_are_smaller_and_near(
    kind, precision, small_checkpoint, exported_folders, make_image, tmp_path
):
    pytest.importorskip("nncf")
    model = AnomalyCLIPModel.from_pretrained(small_checkpoint)
    processor = AnomalyCLIPProcessor.from_pretrained(small_checkpoint)
    given = {"tolerance": 0.5}
    if (kind, precision) == ("openvino", "int8"):
        given["calibration_images"] = [make_image(seed=seed) for seed in range(8)]
    found = export_model(model, processor, tmp_path / "out", kind, precision, **given)
    assert 1e-6 < found["max_score_difference"] < 0.05 and found["max_map_difference"] < 0.5
    sizes = [
        sum(path.stat().st_size for path in Path(folder).glob("*model*") if path.suffix in (".bin", ".onnx", ".data"))
        for folder in (tmp_path / "out", exported_folders(kind))
    ]
    most = {"openvino": 0.7, "onnx": 0.9}[kind]  # a tiny graph is a large share of its file
    assert sizes[0] < most * sizes[1] and found["tolerance"] == 0.5
    assert not ExportedModel(tmp_path / "out").is_exact
