"""AnomalyCLIP for the Hugging Face ecosystem: zero-shot anomaly detection with two learned prompts."""

from typing import TYPE_CHECKING, Any

from ._lazy import find_export
from .assets import demo_checkpoint

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ModuleNotFoundError as error:  # what is exported is scored without them
    if str(error.name).partition(".")[0] not in ("torch", "transformers"):
        raise
    _LACKS: str | None = error.name
else:
    _LACKS = None

if TYPE_CHECKING:
    from .conversion import convert_checkpoint
    from .data import load_anomaly_dataset
    from .export.runtime import AnomalyCLIPExported
    from .scoring.profiles import Profile
    from .scoring.regions import find_regions

__version__ = "0.1.0"

__all__ = [
    "AnomalyCLIPConfig",
    "AnomalyCLIPExported",
    "AnomalyCLIPImageProcessor",
    "AnomalyCLIPModel",
    "AnomalyCLIPOutput",
    "AnomalyCLIPProcessor",
    "Profile",
    "ZeroShotAnomalyDetectionPipeline",
    "compute_similarity_maps",
    "convert_checkpoint",
    "demo_checkpoint",
    "find_regions",
    "load_anomaly_dataset",
]

# name -> module that defines it, imported when first asked for.
_LAZY = {"convert_checkpoint": "conversion", "load_anomaly_dataset": "data"}
_LAZY |= {"Profile": "scoring.profiles", "find_regions": "scoring.regions"}
_LAZY |= {"AnomalyCLIPExported": "export.runtime"}


def __getattr__(name: str) -> Any:
    if _LACKS and name in __all__ and name not in ("AnomalyCLIPExported", "find_regions"):
        raise ImportError(
            f"anomalyclip_hf.{name} needs {_LACKS}, which isn't installed: pip install anomalyclip_hf with its "
            "dependencies. Without them AnomalyCLIPExported scores with what `anomalyclip export` wrote"
        )
    value = globals()[name] = find_export(__name__, _LAZY, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING or _LACKS is None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_anomalyclip import AnomalyCLIPConfig
    from .image_processing_anomalyclip import AnomalyCLIPImageProcessor, AnomalyCLIPProcessor
    from .modeling_anomalyclip import AnomalyCLIPModel, AnomalyCLIPOutput, compute_similarity_maps
    from .pipeline_anomalyclip import ZeroShotAnomalyDetectionPipeline

    AutoConfig.register("anomalyclip", AnomalyCLIPConfig)
    AutoModel.register(AnomalyCLIPConfig, AnomalyCLIPModel)
    # Checkpoints of older versions name their image processor otherwise; transformers looks for a class of that name.
    _OLD_NAME = type("AnomalyCLIPProcessor", (AnomalyCLIPImageProcessor,), {})
    AutoImageProcessor.register(
        AnomalyCLIPConfig, image_processor_classes={"pil": AnomalyCLIPImageProcessor, "old name": _OLD_NAME}
    )
    AutoProcessor.register(AnomalyCLIPConfig, AnomalyCLIPImageProcessor)
    PIPELINE_REGISTRY.register_pipeline(
        "zero-shot-anomaly-detection",
        pipeline_class=ZeroShotAnomalyDetectionPipeline,
        pt_model=AnomalyCLIPModel,
        default={"model": (demo_checkpoint(), "main")},
        type="image",
    )
