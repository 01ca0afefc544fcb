import numpy as np
import pytest

from anomalyclip_hf.evaluation import evaluate_metrics, metrics


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_image_metrics_accumulate_batches(tmp_path):
    metric = evaluate_metrics.ImageAnomalyMetrics(cache_dir=str(tmp_path))
    metric.add_batch(predictions=[0.9, 0.2], references=[1, 0])
    metric.add_batch(predictions=np.array([0.4, 0.3]), references=np.array([0, 1]))
    result = metric.compute()
    assert result == metrics.image_metrics([0.9, 0.2, 0.4, 0.3], [1, 0, 0, 1])
    assert result["image_auroc"] == 0.75


@pytest.mark.parametrize(
    "name, key, expected",
    [
        ("ImageAUROC", "image_auroc", 0.75),
        ("ImageAP", "image_ap", (1 + 2 / 3) / 2),
        ("ImageF1Max", "image_f1_max", 0.8),
    ],
)
def test_each_image_metric(name, key, expected, tmp_path):
    metric = getattr(evaluate_metrics, name)(cache_dir=str(tmp_path))
    result = metric.compute(predictions=[0.9, 0.2, 0.4, 0.3], references=[1, 0, 0, 1])
    assert result[key] == pytest.approx(expected)


@pytest.mark.parametrize(
    "name", ["PixelAUROC", "PixelAP", "PixelF1Max", "AUPRO", "AUPROAuthors", "PixelAnomalyMetrics"]
)
def test_each_pixel_metric_takes_maps(name, tmp_path):
    rng = np.random.default_rng(0)
    maps = [rng.random((6, 8), dtype=np.float32), rng.random((5, 7), dtype=np.float32)]
    masks = [(anomaly_map > 0.7).astype(np.uint8) for anomaly_map in maps]
    maps = [anomaly_map + 0.4 * rng.random(anomaly_map.shape, dtype=np.float32) for anomaly_map in maps]
    metric = getattr(evaluate_metrics, name)(cache_dir=str(tmp_path))
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metric.add(prediction=anomaly_map, reference=mask)
    expected = metrics.pixel_metrics(maps, masks)
    result = metric.compute()
    assert result and all(expected[key] == value for key, value in result.items())


def test_fpr_limit_is_passed_on(tmp_path):
    maps = np.random.default_rng(1).random((2, 8, 8), dtype=np.float32)
    masks = (maps > 0.9).astype(np.uint8)
    maps[:, 0] = 1.0
    result = evaluate_metrics.AUPRO(cache_dir=str(tmp_path)).compute(predictions=maps, references=masks, fpr_limit=0.1)
    assert result["aupro"] == metrics.aupro(maps, masks, 0.1) != metrics.aupro(maps, masks)
