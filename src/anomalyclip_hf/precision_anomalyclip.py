"""Half-precision weights on CPUs that can only emulate half-precision arithmetic."""

import torch
from torch import Tensor, nn

# PyTorch's names of instruction sets for which it has no fast bfloat16 matrix products: there they are about a hundred
# times slower than those of float32.
SLOW_BFLOAT16 = ("DEFAULT", "NO AVX", "AVX2")


@torch.compiler.assume_constant_result
def _has_slow_bfloat16() -> bool:
    return torch.backends.cpu.get_cpu_capability() in SLOW_BFLOAT16


def is_emulated(weight: Tensor) -> bool:
    """Whether arithmetic on such a tensor is emulated: float16 on any CPU, bfloat16 on those without instructions.

    Args:
        weight (`Tensor` of any shape, dtype and device).
    """
    if weight.device.type != "cpu":
        return False
    if weight.dtype == torch.bfloat16:
        return _has_slow_bfloat16()
    return weight.dtype == torch.float16


def widen(states: Tensor) -> Tensor:
    """States in float32 where their dtype is emulated, as they are elsewhere."""
    return states.float() if is_emulated(states) else states


def run_widened(module: nn.Module, *args, **kwargs):
    """Call a module whose weights are of one dtype; where that dtype is emulated, with float32 copies of the weights.

    The copies live as long as the call: memory grows by one layer, results are those of float32 arithmetic on the
    stored weights.

    Args:
        module (`nn.Module`): with at least one parameter.
        args, kwargs: its arguments; floating-point ones may be float32 or of the weights' dtype.
    """
    if not is_emulated(next(module.parameters())):
        return module(*args, **kwargs)
    weights = {name: weight.float() for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, weights, args, kwargs)


__all__ = ["is_emulated", "run_widened", "widen"]
