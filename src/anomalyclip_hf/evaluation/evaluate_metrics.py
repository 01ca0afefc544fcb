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

from ..scoring.ranking import Maps, Values
from .metrics import image_metrics, pixel_metrics


class ImageAnomalyMetrics(evaluate.Metric):
    """All image metrics together."""

    columns: ClassVar[dict[str, Any]] = {"predictions": Value("float64"), "references": Value("int32")}
    names: ClassVar[tuple[str, ...] | None] = None  # which metrics; all of them where None

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation="Zhou et al., AnomalyCLIP, ICLR 2024, https://arxiv.org/abs/2310.18961",
            inputs_description="predictions: anomaly scores, higher is more anomalous; references: 1 is anomalous",
            features=Features(self.columns),
        )

    def _compute(self, predictions: Values, references: Values) -> dict[str, Any]:
        return self._choose(image_metrics(predictions, references))

    def _choose(self, found: dict[str, Any]) -> dict[str, Any]:
        return found if self.names is None else {name: found[name] for name in self.names}


class PixelAnomalyMetrics(ImageAnomalyMetrics):
    """All pixel metrics together, from one sort."""

    columns: ClassVar[dict[str, Any]] = {
        "predictions": Sequence(Sequence(Value("float32"))),
        "references": Sequence(Sequence(Value("uint8"))),
    }

    def _info(self) -> evaluate.MetricInfo:
        info = super()._info()
        # Nested Python lists would take a minute; the constructor refuses this format for columns of lists.
        info.format = "numpy"
        return info

    def _compute(  # type: ignore[override]
        self, predictions: Maps, references: Maps, fpr_limit: float = 0.3
    ) -> dict[str, Any]:
        return self._choose(pixel_metrics(predictions, references, fpr_limit))


class ImageAUROC(ImageAnomalyMetrics):
    """Area under the ROC curve of image scores."""

    names = ("image_auroc",)


class ImageAP(ImageAnomalyMetrics):
    """Average precision of image scores."""

    names = ("image_ap",)


class ImageF1Max(ImageAnomalyMetrics):
    """Best F1 of image scores over all thresholds."""

    names = ("image_f1_max", "image_f1_max_threshold")


class PixelAUROC(PixelAnomalyMetrics):
    """Area under the ROC curve of all pixels."""

    names = ("pixel_auroc",)


class PixelAP(PixelAnomalyMetrics):
    """Average precision of all pixels."""

    names = ("pixel_ap",)


class PixelF1Max(PixelAnomalyMetrics):
    """Best F1 of all pixels over all thresholds."""

    names = ("pixel_f1_max", "pixel_f1_max_threshold")


class AUPRO(PixelAnomalyMetrics):
    """Exact area under the per-region-overlap curve up to a false-positive rate of `fpr_limit` (0.3)."""

    names = ("aupro",)


class AUPROAuthors(PixelAnomalyMetrics):
    """AUPRO with 200 thresholds and rescaled false-positive rates, as the authors compute it."""

    names = ("aupro_authors",)
