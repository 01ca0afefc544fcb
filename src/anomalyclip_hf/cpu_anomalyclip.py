"""Arithmetic on CPUs: half precision where it is only emulated, and ways around kernels that leave a CPU idle."""

from functools import cache

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
    weight = next(module.parameters())
    if weight.is_meta:  # offloaded: nothing but the module itself sees its weights, so states take their dtype
        args = tuple(arg.to(weight.dtype) if torch.is_tensor(arg) and arg.is_floating_point() else arg for arg in args)
    if not is_emulated(weight):
        return module(*args, **kwargs)
    weights = {name: weight.float() for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, weights, args, kwargs)


# Fast ways on CPUs, for scoring alone: training and compiled code take PyTorch's own.

# Entries of one block of attention weights: of all heads, as many as the CPU's caches hold.
BLOCK_ENTRIES = 6_000_000
# Bytes of the largest hidden state of a group of images; larger tensors are mapped and unmapped at every use.
GROUP_BYTES = 24_000_000
FEW_ROWS = 128  # with fewer, reordering the weights costs more than it gains


@cache
def _capabilities() -> dict:
    """What PyTorch tells of the CPU; nothing where it is too old to tell."""
    known = getattr(torch.cpu, "get_capabilities", None)
    return known() if known is not None else {}


@torch.compiler.assume_constant_result
def _products_without_amx() -> bool:
    """AVX-512 products of bfloat16 but no AMX, the only one that PyTorch's fused attention makes use of."""
    return bool(_capabilities().get("avx512_bf16")) and not _capabilities().get("amx_bf16")


@torch.compiler.assume_constant_result
def _is_amd_with_avx512() -> bool:
    """CPUs on which MKL, which computes float32 products, stays with AVX2; oneDNN does not."""
    return bool(_capabilities().get("avx512_f")) and "AMD" in str(_capabilities().get("cpu_name"))


def is_scoring_on_cpu(states: Tensor) -> bool:
    """Whether these states are on the CPU and neither gradients nor a compiled graph are wanted."""
    return states.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def wants_blocks(queries: Tensor) -> bool:
    """Whether [`attend_in_blocks`] is the fast way to attend.

    Args:
        queries (`Tensor` of shape `(B, H, N, D)`, any dtype and device).
    """
    return queries.dtype == torch.bfloat16 and is_scoring_on_cpu(queries) and _products_without_amx()


def attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention in blocks of queries, whose weights stay in the CPU's caches.

    Args:
        queries, keys, values (`Tensor` of shape `(B, H, Q or N, D)`, float).
        scale (`float`): of the logits.

    Returns:
        `Tensor` of shape `(B, Q, H, D)`, dtype of the queries.
    """
    batch, heads, count, _ = queries.shape
    # What all keys share changes no weight, but makes logits larger, and larger ones are rounded more.
    centered = keys.float() - keys.float().mean(dim=2, keepdim=True)
    columns = (centered * scale).to(queries.dtype).contiguous().mT
    queries, values = queries.contiguous(), values.contiguous()
    output = torch.empty_like(queries)
    rows = max(1, BLOCK_ENTRIES // (batch * heads * keys.shape[2]))
    for start in range(0, count, rows):
        block = slice(start, start + rows)
        output[:, :, block] = (queries[:, :, block] @ columns).softmax(dim=-1) @ values
    return output.transpose(1, 2)


class CPULinear(nn.Linear):
    """`nn.Linear` that has oneDNN compute it where MKL leaves half of the CPU idle."""

    def forward(self, states: Tensor) -> Tensor:
        if not self._wants_onednn(states):
            return super().forward(states)
        # As a convolution of one pixel, the public way to a float32 product by oneDNN.
        pixels = states.reshape(1, -1, 1, states.shape[-1]).permute(0, 3, 1, 2)
        output = nn.functional.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return output.permute(0, 2, 3, 1).reshape(*states.shape[:-1], -1)

    def _wants_onednn(self, states: Tensor) -> bool:
        return (
            states.dtype == self.weight.dtype == torch.float32
            and states.numel() >= FEW_ROWS * states.shape[-1]
            and is_scoring_on_cpu(states)
            and not torch.is_autocast_enabled("cpu")
            and _is_amd_with_avx512()
        )


def use_cpu_linear(module: nn.Module) -> None:
    """Make the linear layers below a module [`CPULinear`]s, in place."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = CPULinear


def split_on_cpu(tokens: Tensor, width: int) -> tuple[Tensor, ...]:
    """Tokens of images in groups that go through a tower one after another: several when scoring on the CPU.

    Args:
        tokens (`Tensor` of shape `(B, N, d)`, any dtype and device).
        width (`int`): of the tower's widest hidden state.
    """
    if not is_scoring_on_cpu(tokens):
        return (tokens,)
    return tokens.split(max(1, GROUP_BYTES // (4 * tokens.shape[1] * width)))


__all__ = [
    "CPULinear",
    "attend_in_blocks",
    "is_emulated",
    "run_widened",
    "split_on_cpu",
    "use_cpu_linear",
    "wants_blocks",
    "widen",
]
