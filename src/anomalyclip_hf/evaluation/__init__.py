"""Evaluation: metrics, the evaluator, calibration, pictures and reports."""
