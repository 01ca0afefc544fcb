"""Former name of `anomalyclip_hf.scoring.thresholds`; it goes with the next release."""

from .._lazy import moved_module

__getattr__ = moved_module(__name__, "anomalyclip_hf.scoring.thresholds")
