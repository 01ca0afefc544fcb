"""Evaluation: metrics, the evaluator, calibration, pictures and reports."""

from __future__ import annotations

from .._lazy import find_export

_WHERE = {
    "calibrate": "thresholds",
    "save_thresholds": "thresholds",
    "calibrate_from_labels": "calibration",
    "calibrate_from_normal": "calibration",
    "calibrate_pixels_from_labels": "calibration",
    "calibrate_pixels_from_normal": "calibration",
    "BASELINES": "baselines",
    "MethodScorer": "baselines",
    "contact_sheet": "visualization",
    "evaluate_model": "evaluator",
    "evaluate_sources": "evaluator",
    "EvaluationSettings": "evaluator",
    "fit_scale": "visualization",
    "image_metrics": "metrics",
    "overlay": "visualization",
    "pixel_metrics": "metrics",
    "plot_curves": "plots",
    "plot_metric_curves": "plots",
    "plot_score_histograms": "plots",
    "Sample": "visualization",
    "StreamingPixelMetrics": "streaming",
    "to_markdown": "results",
    "UndefinedMetricWarning": "ranking",
    "write_report": "report",
    "write_results": "results",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    return find_export(__name__, _WHERE, name)


def __dir__():
    return __all__
