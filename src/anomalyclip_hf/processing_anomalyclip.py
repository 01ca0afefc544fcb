"""Old name of `image_processing_anomalyclip` and `images_anomalyclip`, for one release."""

import warnings

from .image_processing_anomalyclip import AnomalyCLIPProcessor, gaussian_smooth
from .images_anomalyclip import ImageReadError, load_image, to_pil_image

warnings.warn(
    "anomalyclip_hf.processing_anomalyclip is now anomalyclip_hf.image_processing_anomalyclip",
    FutureWarning,
    stacklevel=2,
)

__all__ = ["AnomalyCLIPProcessor", "ImageReadError", "gaussian_smooth", "load_image", "to_pil_image"]
