"""Models for engines that others keep: ONNX Runtime, OpenVINO, torch.export; and the runtime, which needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._lazy import find_export

if TYPE_CHECKING:
    from .exporting import export_model
    from .model import ExportedModel
    from .runtime import AnomalyCLIPExported

__all__ = ["AnomalyCLIPExported", "ExportedModel", "export_model"]
_LAZY = {"AnomalyCLIPExported": "runtime", "ExportedModel": "model", "export_model": "exporting"}


def __getattr__(name: str) -> Any:
    return find_export(__name__, _LAZY, name)
