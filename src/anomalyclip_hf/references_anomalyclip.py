"""Former name of `anomalyclip_hf.sharing.references`; it goes with the next release."""

from ._lazy import moved_module

__getattr__ = moved_module(__name__, "anomalyclip_hf.sharing.references")
