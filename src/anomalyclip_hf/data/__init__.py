"""Data: layouts of known data sets, loading of any source into one schema, drawn anomalies."""

from __future__ import annotations

from .._lazy import find_export

_WHERE = {
    "load_anomaly_dataset": "loading",
    "SourceOptions": "options",
    "LAYOUTS": "layouts",
    "DatasetLayout": "layouts",
    "Variant": "layouts",
    "find_layout": "layouts",
    "register_layout": "layouts",
    "ImageReadError": "images",
    "read_image": "images",
    "read_mask": "images",
    "inspect_source": "inspect",
    "export_dataset": "export",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    return find_export(__name__, _WHERE, name)


def __dir__():
    return __all__
