import importlib.metadata
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.evaluation import EvaluationSettings, evaluate_model, evaluate_sources, metrics
from anomalyclip_hf.evaluation.baselines import MethodScorer
from anomalyclip_hf.evaluation.model_card import make_model_card
from anomalyclip_hf.evaluation.published import paper_results
from anomalyclip_hf.evaluation.results import short_table, to_markdown
from anomalyclip_hf.evaluation.summary import mean_over_classes
from evaluation_tools import make_tree

SETTINGS = {"batch_size": 2, "show_progress": False}
PIXELS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_authors")


@pytest.fixture
def dataset(tmp_path):
    return load_anomaly_dataset("mvtec", data_dir=make_tree(tmp_path / "mvtec"))


def plain_loop(model, processor, dataset, size=None):
    """Scores, maps and masks image by image, the plain way."""
    scores, maps, masks = [], [], []
    for row in dataset:
        batch = processor([row["image"]], masks=[row["mask"] or np.zeros((40, 50), bool)], return_tensors="pt")
        with torch.no_grad():
            output = model(batch["pixel_values"])
        result = processor.post_process_anomaly_detection(output, target_sizes=size and [size])[0]
        scores.append(result["score"])
        maps.append(result["anomaly_map"].numpy())
        original = np.zeros((40, 50), bool) if row["mask"] is None else np.asarray(row["mask"]) > 127
        masks.append(batch["masks"][0].numpy() if size is None else original)
    return scores, maps, masks


def comparable(result):
    keys = ("mean", "classes", "methods", "scores", "curves", "notes", "num_images")
    return json.dumps({key: result[key] for key in keys}, sort_keys=True)


@pytest.mark.parametrize("exact", [True, None, False])
def test_numbers_are_those_of_a_plain_loop(tiny_model, tiny_processor, dataset, exact):
    result = evaluate_model(tiny_model, tiny_processor, dataset, exact=exact, **SETTINGS)
    assert list(result["classes"]) == ["bottle", "grid"]
    for name, values in result["classes"].items():
        own = dataset.select([i for i, one in enumerate(dataset["class_name"]) if one == name])
        scores, maps, masks = plain_loop(tiny_model, tiny_processor, own)
        expected = metrics.image_metrics(scores, own["label"]) | metrics.pixel_metrics(maps, masks)
        for key in ("image_auroc", "image_ap", "image_f1_max", *PIXELS):
            assert values[key] == pytest.approx(expected[key], abs=1e-4 if exact is False else 1e-6), key
        assert (values["num_images"], values["num_anomalous_images"], values["num_regions"]) == (7, 4, 4)
        assert values["reasons"] == {}
        places = [place for place, one in enumerate(result["scores"]["class_name"]) if one == name]
        found = [result["scores"]["scores"]["anomalyclip"][place] for place in places]
        assert found == pytest.approx(scores, abs=1e-6)
    for key in ("image_auroc", "aupro"):
        assert result["mean"][key] == pytest.approx(np.mean([one[key] for one in result["classes"].values()]))
    assert result["scores"]["path"] == list(dataset["path"]) and result["scores"]["label"] == list(dataset["label"])


def test_pixels_can_be_judged_at_other_sizes(tiny_model, tiny_processor, dataset):
    own = dataset.select(range(7))
    found = evaluate_model(tiny_model, tiny_processor, own, map_size="original", exact=True, **SETTINGS)
    _, maps, masks = plain_loop(tiny_model, tiny_processor, own, size=(40, 50))
    expected = metrics.pixel_metrics(maps, masks)
    assert found["classes"]["bottle"]["num_pixels"] == 7 * 40 * 50
    assert [found["mean"][key] for key in PIXELS] == pytest.approx([expected[key] for key in PIXELS], abs=1e-6)
    small = evaluate_model(tiny_model, tiny_processor, own, map_size=20, **SETTINGS)
    assert small["classes"]["bottle"]["num_pixels"] == 7 * 20 * 20
    assert small["mean"]["pixel_auroc"] == pytest.approx(expected["pixel_auroc"], abs=0.05)


def test_a_run_that_was_cut_off_goes_on(tiny_model, tiny_processor, dataset, tmp_path, monkeypatch):
    options = {**SETTINGS, "exact": False, "save_every": 1, "methods": ["anomalyclip", "dpam=off"], "num_bins": 2**12}
    whole = evaluate_model(tiny_model, tiny_processor, dataset, **options)
    score, calls = MethodScorer.score, []

    def counted(self, *args):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return score(self, *args)

    monkeypatch.setattr(MethodScorer, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, **options)
    resumed = evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, resume=True, **options)
    # 4 batches a class: the first class and two batches of the second were there.
    assert len(calls) == 7 + 2 and comparable(resumed) == comparable(whole)
    assert not list(tmp_path.rglob("*.npz"))
    again = evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, resume=True, **options)
    assert len(calls) == 9 and comparable(again) == comparable(whole)
    # Another model, other settings, or no wish to resume: all is judged anew.
    evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, **options)
    assert len(calls) == 17
    with torch.no_grad():
        tiny_model.prompt_learner.context.add_(1.0)
    other = evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, resume=True, **options)
    assert len(calls) == 25 and comparable(other) != comparable(whole)


def test_unreadable_files_leave_the_rest_as_it_is(tiny_model, tiny_processor, tmp_path, monkeypatch):
    tree = make_tree(tmp_path / "mvtec")
    whole = load_anomaly_dataset("mvtec", data_dir=tree)
    rest = whole.select([i for i in range(14) if i not in (2, 4, 5)])
    Image.new("L", (10, 90)).save(tree / "bottle/ground_truth/scratch/001_mask.png")  # of another picture
    for name in ("test/good/002.png", "ground_truth/scratch/002_mask.png"):
        (tree / "bottle" / name).write_bytes(b"")
    options = {**SETTINGS, "batch_size": 1, "exact": False, "num_bins": 2**12}
    expected = evaluate_model(tiny_model, tiny_processor, rest, **options)
    score, calls = MethodScorer.score, []

    def counted(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(self, *args)

    monkeypatch.setattr(MethodScorer, "score", counted)
    options |= {"output_dir": tmp_path / "out", "save_every": 1}
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(tiny_model, tiny_processor, whole, **options)
    for _ in range(2):  # the second time from the finished classes
        found = evaluate_model(tiny_model, tiny_processor, whole, resume=True, num_workers=1, **options)
        assert found["classes"] == expected["classes"] and found["num_images"] == 11
        assert [one["path"] for one in found["unreadable"]] == [whole["path"][i] for i in (2, 4, 5)]
        assert all(word in found["notes"][0] for word in ("3 of 14", "it is empty (0 bytes)", "mask of", "10x90"))
    assert len(calls) == 12  # 11 images and the one cut off
    for file in tree.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its 14 images can be scored; the first: .*000\.png"):
        evaluate_model(tiny_model, tiny_processor, whole, **SETTINGS)


def test_damaged_records_are_made_anew(tiny_model, tiny_processor, dataset, tmp_path):
    whole = evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, **SETTINGS)
    folder = tmp_path / "records" / "data"
    (folder / "bottle" / "class.json").write_text('{"key": ')
    (folder / "grid" / "00000007.parquet").write_bytes(b"no table")
    resumed = evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, resume=True, **SETTINGS)
    assert comparable(resumed) == comparable(whole)


@pytest.mark.parametrize("exact", [True, False])
def test_thresholds_and_limits_add_their_metrics(tiny_model, tiny_processor, dataset, tmp_path, exact):
    scores, maps, masks = plain_loop(tiny_model, tiny_processor, dataset.select(range(7)))
    tiny_model.config.image_threshold = float(np.median(scores))
    at = float(np.quantile(maps, 0.7))
    asked = {"fpr_limits": [0.05, 0.3], "pixel_threshold": at, "exact": exact, "methods": ["anomalyclip", "dpam=off"]}
    result = evaluate_sources(tiny_model, tiny_processor, {"mine": dataset}, output_dir=tmp_path, **asked, **SETTINGS)
    entry = result["datasets"]["mine"]
    found, near = entry["classes"]["bottle"], {"abs": 1e-6 if exact else 1e-3}
    marked, masks = np.stack(maps) >= at, np.stack(masks) > 0
    expected = 2 * (marked & masks).sum() / (marked.sum() + masks.sum())
    assert found["pixel_f1"] == pytest.approx(expected, **near)
    assert found["aupro_0.05"] == pytest.approx(metrics.aupro(maps, masks, 0.05), **near) and "aupro_0.3" not in found
    called = np.array(scores) >= np.median(scores)
    assert found["image_f1"] == pytest.approx(2 * called[3:].sum() / (called.sum() + 4))
    mean = entry["mean"]["pixel_f1"]
    assert mean == pytest.approx(np.mean([values["pixel_f1"] for values in entry["classes"].values()]))
    # The model's thresholds say nothing of another method.
    other = entry["methods"]["dpam=off"]["mean"]
    assert "aupro_0.05" in other and "pixel_f1" not in other and "image_f1" not in other
    stored = json.loads((tmp_path / "results.json").read_text())["datasets"]["mine"]["mean"]
    assert stored["pixel_f1"] == mean and result["settings"]["pixel_threshold"] == at
    card = str(make_model_card(tiny_model, tmp_path / "results.json"))
    for text in (to_markdown(result), short_table(result), (tmp_path / "report.html").read_text(), card):
        assert all(title in text for title in ("image F1", "pixel F1 (SegF1)", "AUPRO at 0.05"))


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_saved_maps_are_those_that_were_judged(tiny_model, tiny_processor, dataset, tmp_path, suffix):
    evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path, save_maps=suffix, **SETTINGS)
    files = sorted((tmp_path / "maps" / "data" / "bottle").rglob(f"*.{suffix}"), key=lambda file: file.name)
    assert [file.name for file in files[:4]] == [
        f"00000{i}_00{j}.{suffix}" for i, j in ((0, 0), (1, 1), (2, 2), (3, 0))
    ]
    assert files[0].parent.name == "good" and files[3].parent.name == "scratch" and len(files) == 7
    _, maps, _ = plain_loop(tiny_model, tiny_processor, dataset.select(range(7)))
    for file, expected in zip(files, maps, strict=True):
        found = np.load(file) if suffix == "npy" else np.asarray(Image.open(file)) / 65535
        assert np.abs(found - expected).max() < 1e-5


def test_what_is_undefined_is_nan_with_a_reason(tiny_model, tiny_processor, tmp_path):
    some = load_anomaly_dataset(str(make_tree(tmp_path / "some", ("a",), mask_missing=(1,))))
    found = evaluate_model(tiny_model, tiny_processor, some, **SETTINGS)
    assert found["num_anomalous_images_without_mask"] == 1 and found["classes"]["a"]["num_judged_maps"] == 6
    none = load_anomaly_dataset(str(make_tree(tmp_path / "none", ("a",), mask_missing=range(4))))
    values = evaluate_model(tiny_model, tiny_processor, none, **SETTINGS)["classes"]["a"]
    assert 0 <= values["image_auroc"] <= 1 and all(math.isnan(values[key]) for key in PIXELS)
    assert set(values["reasons"]) == set(PIXELS)
    assert values["reasons"]["aupro"] == "none of the 4 anomalous images has a mask with an anomalous pixel"
    mixed = load_anomaly_dataset(str(make_tree(tmp_path / "mixed", ("a", "b"))))
    keep = [i for i, row in enumerate(mixed) if row["class_name"] == "a" or row["label"] == 0]
    found = evaluate_sources(tiny_model, tiny_processor, {"mixed": mixed.select(keep)}, **SETTINGS)
    entry = found["datasets"]["mixed"]
    assert entry["mean"]["image_auroc"] == entry["classes"]["a"]["image_auroc"]
    assert entry["mean_num_classes"]["image_auroc"] == 1 and math.isnan(entry["classes"]["b"]["pixel_auroc"])
    text = to_markdown(found)
    assert "image_auroc: mean over 1 of 2 classes" in text and "undefined: no anomalous image" in text


def test_images_without_labels_are_scored_but_not_judged(tiny_model, tiny_processor, dataset):
    labels = [None if index in (0, 5) else label for index, label in enumerate(dataset["label"])]
    unknown = dataset.remove_columns("label").add_column("label", labels)
    found = evaluate_model(tiny_model, tiny_processor, unknown, **SETTINGS)
    assert found["num_unlabeled_images"] == 2 and len(found["scores"]["scores"]["anomalyclip"]) == 14
    scores, _, _ = plain_loop(tiny_model, tiny_processor, dataset.select([1, 2, 3, 4, 6]))
    expected = metrics.image_auroc(scores, [0, 0, 1, 1, 1])
    assert found["classes"]["bottle"]["image_auroc"] == pytest.approx(expected)


def test_mean_leaves_undefined_classes_out():
    mean, counts = mean_over_classes({"a": {"image_auroc": 0.5, "aupro": math.nan}, "b": {"image_auroc": math.nan}})
    assert mean["image_auroc"] == 0.5 and math.isnan(mean["aupro"]) and counts["image_auroc"] == 1


def test_the_paper_stands_beside_ours(tiny_model, tiny_processor, tmp_path):
    from anomalyclip_hf.data import LAYOUTS

    tree = make_tree(tmp_path / "mvtec", LAYOUTS["mvtec"].classes, good=1, bad=1)
    dataset = load_anomaly_dataset("mvtec", data_dir=tree)
    out = tmp_path / "out"
    result = evaluate_sources(
        tiny_model, tiny_processor, {"mvtec": dataset}, output_dir=out, methods=["anomalyclip", "dpam=off"], **SETTINGS
    )
    entry = result["datasets"]["mvtec"]
    assert entry["title"] == "MVTec AD" and list(entry["methods"]) == ["anomalyclip", "dpam=off"]
    assert entry["paper"]["mean"] == pytest.approx(
        {"image_auroc": 0.915, "image_ap": 0.962, "pixel_auroc": 0.911, "aupro_authors": 0.814}
    )
    ours = entry["mean"]["image_auroc"]
    assert entry["paper"]["difference"]["image_auroc"] == pytest.approx(ours - 0.915)
    text = (out / "results.md").read_text()
    assert text == to_markdown(result) and f"{100 * (ours - 0.915):+.1f}" in text
    bottle = next(line for line in text.splitlines() if line.startswith("| bottle"))
    assert "88.7" in bottle and f"{100 * (entry['classes']['bottle']['image_auroc'] - 0.887):+.1f}" in bottle
    stored = json.loads((out / "results.json").read_text())
    assert stored["datasets"]["mvtec"]["mean"] == entry["mean"]
    assert stored["versions"]["torch"] == importlib.metadata.version("torch")
    assert stored["settings"]["batch_size"] == 2 and stored["model"]["feature_layers"] == [2, 4]
    assert "scores" not in stored["datasets"]["mvtec"]
    page = (out / "report.html").read_text()
    assert "mvtec: worst misses" in page and "without DPAM" in page and "http" not in page.replace("http://www.w3", "")
    card = make_model_card(tiny_model, results=out / "results.json")
    assert f"{100 * ours:.1f}" in str(card) and "MVTec AD" in str(card)


def test_scores_are_kept_for_each_image_and_method(tiny_model, tiny_processor, dataset, tmp_path):
    sources = {"mvtec": dataset, "own": dataset.select(range(3))}
    methods = ["anomalyclip", "deep_prompts=off"]
    result = evaluate_sources(
        tiny_model, tiny_processor, sources, output_dir=tmp_path, methods=methods, num_pictures=0, **SETTINGS
    )
    table = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert list(table) == ["dataset", "method", "class_name", "path", "defect_type", "label", "score"]
    assert len(table["score"]) == 2 * 17 and table["dataset"] == ["mvtec"] * 28 + ["own"] * 6
    assert table["score"][14:28] == result["datasets"]["mvtec"]["scores"]["scores"]["deep_prompts=off"]
    assert table["path"][:14] == list(dataset["path"]) and table["label"][:14] == list(dataset["label"])
    assert "paper" not in result["datasets"]["own"] and paper_results("own") is None
    assert "no difference of means is given" in result["datasets"]["mvtec"]["notes"][-1]  # 2 of 15 classes


def test_bad_settings_and_data_are_refused(tiny_model, tiny_processor, dataset):
    for wrong, message in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"map_size": "small"}, "map_size='small'"),
        ({"save_maps": "gif"}, "save_maps='gif'"),
        ({"fpr_limits": [0.2]}, r"fpr_limits=\[0\.2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluationSettings(**wrong)
    with pytest.raises(ValueError, match="needs output_dir"):
        evaluate_model(tiny_model, tiny_processor, dataset, save_maps="png")
    with pytest.raises(ValueError, match="without streaming"):
        evaluate_model(tiny_model, tiny_processor, dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match=r"lacks the columns \['mask'\]"):
        evaluate_model(tiny_model, tiny_processor, dataset.remove_columns("mask"))
    with pytest.raises(ValueError, match="is empty"):
        evaluate_model(tiny_model, tiny_processor, dataset.select([]))
    with pytest.raises(ValueError, match="sources is empty"):
        evaluate_sources(tiny_model, tiny_processor, {})
    with torch.no_grad():
        tiny_model.visual_projection.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        evaluate_model(tiny_model, tiny_processor, dataset, **SETTINGS)
