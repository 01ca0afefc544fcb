"""Evaluation: metrics, the evaluator, baselines, pictures and reports."""

from __future__ import annotations

from .._lazy import find_export, find_moved

_WHERE = {
    "BASELINES": "baselines",
    "area_under_spro": "saturated",
    "METRICS": "metrics",
    "MethodScorer": "baselines",
    "calibrate": ".scoring.thresholds",
    "contact_sheet": "visualization",
    "evaluate_model": "evaluator",
    "evaluate_sources": "evaluator",
    "EvaluationSettings": "settings",
    "fit_scale": "visualization",
    "image_metrics": "metrics",
    "pixel_metrics": "metrics",
    "plot_curves": "plots",
    "plot_metric_curves": "plots",
    "plot_score_histograms": "plots",
    "Sample": "visualization",
    "StreamingPixelMetrics": "streaming",
    "to_markdown": "results",
    "UndefinedMetricWarning": "metrics",
    "write_report": "report",
    "write_results": "results",
}
# Names that live elsewhere now; they are found here for one more release.
_MOVED = {
    "calibrate_from_labels": "anomalyclip_hf.scoring",
    "calibrate_from_normal": "anomalyclip_hf.scoring",
    "calibrate_pixels_from_labels": "anomalyclip_hf.scoring",
    "calibrate_pixels_from_normal": "anomalyclip_hf.scoring",
    "overlay": "anomalyclip_hf.scoring",
    "save_thresholds": "anomalyclip_hf.scoring",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    return find_moved(__name__, _MOVED[name], name) if name in _MOVED else find_export(__name__, _WHERE, name)


def __dir__():
    return __all__
