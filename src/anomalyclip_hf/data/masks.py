"""Former name of [`images`]; it goes with the next release."""

import warnings
from typing import Any

from . import images


def __getattr__(name: str) -> Any:
    if name not in images.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("anomalyclip_hf.data.masks is called anomalyclip_hf.data.images", FutureWarning, stacklevel=2)
    return getattr(images, name)
