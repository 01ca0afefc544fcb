"""AnomalyCLIP for the Hugging Face ecosystem: zero-shot anomaly detection with two learned prompts."""

from typing import TYPE_CHECKING, Any

from ._lazy import find_export
from ._registration import register_with_transformers

__version__ = "0.1.0"

# name -> module that defines it; imported when first asked for, so that importing the package stays fast.
_EXPORTS = {
    "AnomalyCLIPConfig": "configuration_anomalyclip",
    "AnomalyCLIPModel": "modeling_anomalyclip",
    "AnomalyCLIPOutput": "modeling_anomalyclip",
    "AnomalyCLIPProcessor": "processing_anomalyclip",
    "ZeroShotAnomalyDetectionPipeline": "pipeline_anomalyclip",
    "compute_similarity_maps": "modeling_anomalyclip",
    "convert_checkpoint": "conversion",
    "demo_checkpoint": "assets",
    "load_anomaly_dataset": "data",
}

if TYPE_CHECKING:
    from .assets import demo_checkpoint
    from .configuration_anomalyclip import AnomalyCLIPConfig
    from .conversion import convert_checkpoint
    from .data import load_anomaly_dataset
    from .modeling_anomalyclip import AnomalyCLIPModel, AnomalyCLIPOutput, compute_similarity_maps
    from .pipeline_anomalyclip import ZeroShotAnomalyDetectionPipeline
    from .processing_anomalyclip import AnomalyCLIPProcessor

__all__ = [
    "AnomalyCLIPConfig",
    "AnomalyCLIPModel",
    "AnomalyCLIPOutput",
    "AnomalyCLIPProcessor",
    "ZeroShotAnomalyDetectionPipeline",
    "compute_similarity_maps",
    "convert_checkpoint",
    "demo_checkpoint",
    "load_anomaly_dataset",
]


def __getattr__(name: str) -> Any:
    value = globals()[name] = find_export(__name__, _EXPORTS, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


register_with_transformers()
