"""Old name of `image_processing_anomalyclip` and `data.reader`, for one release."""

import warnings

from .data.reader import ImageReadError, load_image, to_pil_image
from .image_processing_anomalyclip import AnomalyCLIPProcessor, gaussian_smooth

warnings.warn(
    "anomalyclip_hf.processing_anomalyclip is now anomalyclip_hf.image_processing_anomalyclip",
    FutureWarning,
    stacklevel=2,
)

__all__ = ["AnomalyCLIPProcessor", "ImageReadError", "gaussian_smooth", "load_image", "to_pil_image"]
