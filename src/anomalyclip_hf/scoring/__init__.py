"""Scoring: the one loop over images, and what is made of its records: predictions, thresholds, pictures."""

from __future__ import annotations

from .._lazy import find_export

_WHERE = {
    "Record": "engine",
    "score_images": "engine",
    "calibrate": "thresholds",
    "calibrate_from_labels": "calibration",
    "calibrate_from_normal": "calibration",
    "calibrate_pixels_from_labels": "calibration",
    "calibrate_pixels_from_normal": "calibration",
    "save_thresholds": "thresholds",
    "find_images": "inputs",
    "overlay": "pictures",
    "PredictionSummary": "prediction",
    "predict_dataset": "prediction",
    "predict_files": "prediction",
    "write_coco": "annotations",
    "write_label_studio": "annotations",
    "write_submission": "annotations",
    "predict_video": "video",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    return find_export(__name__, _WHERE, name)


def __dir__():
    return __all__
