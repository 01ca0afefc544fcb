import json

import numpy as np
import pytest
import torch

from anomalyclip_hf import AnomalyCLIPConfig
from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.evaluation.model_card import make_model_card
from anomalyclip_hf.pipeline_anomalyclip import ZeroShotAnomalyDetectionPipeline
from anomalyclip_hf.scoring import calibrate, save_thresholds
from anomalyclip_hf.scoring.thresholds import choose_margin
from evaluation_tools import make_tree


@pytest.fixture
def dataset(tmp_path):
    return load_anomaly_dataset(str(make_tree(tmp_path / "tree", ("part",), good=22, bad=6)))


def test_normal_images_set_both_thresholds(tiny_model, tiny_processor, dataset):
    found = calibrate(tiny_model, tiny_processor, dataset, false_alarm_rate=0.1, confidence=0.9, show_progress=False)
    assert found["image"]["num_samples"] == found["pixel"]["num_samples"] == 22
    assert found["image"]["is_guaranteed"] and tiny_model.config.image_threshold == found["image"]["threshold"]
    pipeline = ZeroShotAnomalyDetectionPipeline(model=tiny_model, image_processor=tiny_processor)
    normal = [row["image"] for row in dataset if row["label"] == 0]
    results = pipeline(normal)
    # 22 images, 10% at 90%: the highest score is the bound, so none of them is called anomalous.
    assert {result["label"] for result in results} == {"normal"}
    assert max(np.asarray(result["mask"]).mean() for result in results) <= 0.01
    # The promise is on the masks of images of any size: the level that 1 % of their pixels lie above, of the highest.
    small = [image.resize((37, 23)) for image in normal]
    found = calibrate(tiny_model, tiny_processor, small, pixel_rate=0.01, show_progress=False)
    levels = [np.sort(np.asarray(result["anomaly_map"]).ravel())[-1 - 23 * 37 // 100] for result in pipeline(small)]
    assert found["pixel"]["threshold"] == pytest.approx(max(levels), rel=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2.4e-7), (torch.bfloat16, 1.2e-3)])
def test_thresholds_stand_rounding(tiny_model, tiny_processor, dataset, dtype, tolerance):
    """Whatever an image's score differs by in another batch size, as measured, it stays on its side."""
    tiny_model.to(dtype)
    normal = [row["image"] for row in dataset if row["label"] == 0]
    with torch.no_grad():
        output = tiny_model(tiny_processor(normal, return_tensors="pt").pixel_values)
    sizes = [image.size[::-1] for image in normal]
    results = tiny_processor.post_process_anomaly_detection(output, target_sizes=sizes)
    options = {"false_alarm_rate": 0.1, "confidence": 0.9, "show_progress": False}
    for batch_size in (1, 7):
        found = calibrate(tiny_model, tiny_processor, normal, pixel_rate=0.0, batch_size=batch_size, **options)
        assert found["image"]["threshold"] > max(result["score"] for result in results) + tolerance
        assert found["pixel"]["threshold"] > max(result["anomaly_map"].max() for result in results) + tolerance


def test_margin_goes_by_what_is_computed(tiny_model):
    assert choose_margin(tiny_model) == 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert choose_margin(tiny_model) == 2e-2
    assert choose_margin(tiny_model.to(torch.float16)) == 2e-2


def test_labels_set_the_threshold_of_the_best_f1(tiny_model, tiny_processor, dataset):
    found = calibrate(tiny_model, tiny_processor, dataset, "labels", show_progress=False)
    assert (found["image"]["num_normal"], found["image"]["num_anomalous"]) == (22, 6)
    assert found["image"]["f1"] >= 2 * 6 / (28 + 6)  # calling all anomalous reaches as much
    assert 0 < found["pixel"]["threshold"] < 1 and found["pixel"]["num_anomalous"] > 100
    options = {"objective": "recall", "recall": 1.0, "show_progress": False}
    high = calibrate(tiny_model, tiny_processor, dataset, "labels", **options)
    assert high["image"]["recall"] == high["pixel"]["recall"] == 1.0


@pytest.mark.filterwarnings("ignore:.* normal samples are too few")
def test_plain_images_are_normal_ones(tiny_model, tiny_processor, dataset):
    normal = dataset.filter(lambda row: row["label"] == 0)
    expected = calibrate(tiny_model, tiny_processor, normal, show_progress=False)
    for images in (list(normal["path"]), tuple(normal["image"]), [np.asarray(image) for image in normal["image"]]):
        assert calibrate(tiny_model, tiny_processor, images, show_progress=False) == expected
    for wrong in (normal[0]["path"], list(normal), {"label": [0]}, [0.5]):
        with pytest.raises(
            TypeError, match=r"expected a data set of load_anomaly_dataset\(...\), or a list of normal"
        ):
            calibrate(tiny_model, tiny_processor, wrong, show_progress=False)


@pytest.mark.filterwarnings("ignore:.* normal samples are too few")
def test_a_stored_return_dict_changes_nothing(tiny_model, tiny_processor, dataset):
    found = calibrate(tiny_model, tiny_processor, dataset, "labels", show_progress=False)
    tiny_model.config.return_dict = False
    assert calibrate(tiny_model, tiny_processor, dataset, "labels", show_progress=False) == found


def test_unreadable_images_are_left_out(tiny_model, tiny_processor, dataset, tmp_path):
    paths = [path for path, label in zip(dataset["path"], dataset["label"], strict=True) if label == 0]
    expected = calibrate(tiny_model, tiny_processor, paths, show_progress=False)
    (tmp_path / "bad.png").write_text("hello")
    bad = [str(tmp_path / "bad.png")] * 8
    with pytest.warns(UserWarning, match=r"8 of 30 images could not be read and are left out; .*bad\.png"):
        assert calibrate(tiny_model, tiny_processor, bad + paths, show_progress=False) == expected
    with pytest.raises(ValueError, match="none of the 8 images can be read"):
        calibrate(tiny_model, tiny_processor, bad, show_progress=False)


def test_what_cannot_be_calibrated_is_refused(tiny_model, tiny_processor, dataset):
    bad = dataset.filter(lambda row: row["label"] == 1)
    with pytest.raises(ValueError, match="none with label 0"):
        calibrate(tiny_model, tiny_processor, bad, show_progress=False)
    with pytest.raises(ValueError, match="no normal image"):
        calibrate(tiny_model, tiny_processor, bad, "labels", show_progress=False)
    with pytest.raises(ValueError, match="method='guess'"):
        calibrate(tiny_model, tiny_processor, dataset, "guess")


def test_thresholds_are_stored_with_the_checkpoint(tiny_model, tmp_path):
    checkpoint = tmp_path / "model"
    tiny_model.save_pretrained(checkpoint)
    before = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "README.md").write_text(str(make_model_card(tiny_model)))
    save_thresholds(checkpoint, 0.25, None)
    after = json.loads((checkpoint / "config.json").read_text())
    assert after == {**before, "image_threshold": 0.25, "pixel_threshold": None}
    tiny_model.config.image_threshold = 0.25
    assert (checkpoint / "README.md").read_text() == str(make_model_card(tiny_model))
    with pytest.raises(ValueError, match=r"pixel_threshold=1\.5"):
        save_thresholds(checkpoint, 0.5, 1.5)
    for wrong in (True, "0.5", float("nan"), -1, [0.5]):
        with pytest.raises(ValueError, match=r"image_threshold=.*expected a score"):
            save_thresholds(checkpoint, wrong, None)
    save_thresholds(checkpoint, np.float32(0.25), None)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        save_thresholds(tmp_path, 0.5, 0.5)
    stored = AnomalyCLIPConfig.from_pretrained(checkpoint)
    assert (stored.image_threshold, stored.pixel_threshold) == (0.25, None)


@pytest.mark.filterwarnings("ignore:.*3 normal samples are too few")
def test_calibration_leaves_no_gradient(tiny_model, tiny_processor, dataset):
    calibrate(tiny_model, tiny_processor, dataset.select(range(3)), show_progress=False)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert torch.is_grad_enabled()
