"""The metrics as `evaluate.Metric` classes, which work without a network.

    metric = ImageAUROC()
    metric.add_batch(predictions=[0.9, 0.2], references=[1, 0])
    metric.compute()  # {"image_auroc": 1.0}

Predictions are anomaly scores (or `(H, W)` maps), references labels (or masks). Undefined values are NaN with an
`UndefinedMetricWarning`. `evaluate` keeps the maps in an Arrow file; `StreamingPixelMetrics` is faster and smaller.
"""

from typing import Any, ClassVar

import evaluate
from datasets import Features, Sequence, Value

from .metrics import (
    aupro,
    aupro_authors,
    f1_max,
    image_ap,
    image_auroc,
    image_metrics,
    pixel_ap,
    pixel_auroc,
    pixel_f1_max,
    pixel_metrics,
)

_CITATION = """@inproceedings{zhou2024anomalyclip,
  title={AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection},
  author={Zhou, Qihang and Pang, Guansong and Tian, Yu and He, Shibo and Chen, Jiming},
  booktitle={ICLR},
  year={2024}
}"""


class _AnomalyMetric(evaluate.Metric):
    columns: ClassVar[dict[str, Any]]

    def _info(self) -> evaluate.MetricInfo:
        description = (type(self).__doc__ or "").strip()
        return evaluate.MetricInfo(
            description=description,
            citation=_CITATION,
            inputs_description="predictions: anomaly scores, higher is more anomalous; references: 1 is anomalous",
            features=Features(self.columns),
        )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        """Nothing to download."""


class _ImageMetric(_AnomalyMetric):
    columns: ClassVar = {"predictions": Value("float64"), "references": Value("int32")}


class _PixelMetric(_AnomalyMetric):
    columns: ClassVar = {
        "predictions": Sequence(Sequence(Value("float32"))),
        "references": Sequence(Sequence(Value("uint8"))),
    }

    def _info(self) -> evaluate.MetricInfo:
        info = super()._info()
        # Nested Python lists would take a minute; the constructor refuses this format for columns of lists.
        info.format = "numpy"
        return info


class ImageAUROC(_ImageMetric):
    """Area under the ROC curve of image scores."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {"image_auroc": image_auroc(predictions, references)}


class ImageAP(_ImageMetric):
    """Average precision of image scores."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {"image_ap": image_ap(predictions, references)}


class ImageF1Max(_ImageMetric):
    """Best F1 of image scores over all thresholds."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        best = f1_max(predictions, references)
        return {"image_f1_max": best.f1, "image_f1_max_threshold": best.threshold}


class ImageAnomalyMetrics(_ImageMetric):
    """All image metrics together."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return image_metrics(predictions, references)


class PixelAUROC(_PixelMetric):
    """Area under the ROC curve of all pixels."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {"pixel_auroc": pixel_auroc(predictions, references)}


class PixelAP(_PixelMetric):
    """Average precision of all pixels."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {"pixel_ap": pixel_ap(predictions, references)}


class PixelF1Max(_PixelMetric):
    """Best F1 of all pixels over all thresholds."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        best = pixel_f1_max(predictions, references)
        return {"pixel_f1_max": best.f1, "pixel_f1_max_threshold": best.threshold}


class AUPRO(_PixelMetric):
    """Exact area under the per-region-overlap curve up to a false-positive rate of `fpr_limit` (0.3)."""

    def _compute(self, predictions: Any, references: Any, fpr_limit: float = 0.3) -> dict[str, Any]:
        return {"aupro": aupro(predictions, references, fpr_limit)}


class AUPROAuthors(_PixelMetric):
    """AUPRO with 200 thresholds and rescaled false-positive rates, as the authors compute it."""

    def _compute(self, predictions: Any, references: Any, fpr_limit: float = 0.3) -> dict[str, Any]:
        return {"aupro_authors": aupro_authors(predictions, references, fpr_limit)}


class PixelAnomalyMetrics(_PixelMetric):
    """All pixel metrics together, from one sort."""

    def _compute(self, predictions: Any, references: Any, fpr_limit: float = 0.3) -> dict[str, Any]:
        return pixel_metrics(predictions, references, fpr_limit)
