"""Muon in float32: torch's own orthogonalizes in bfloat16, which is a hundred times slower on CPUs without it."""

import torch
from torch import Tensor

# Of Jordan's quintic iteration, as torch.optim.Muon has them.
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5


def orthogonalize(updates: Tensor) -> Tensor:
    """Bring the singular values of matrices near 1, by Newton and Schulz.

    Args:
        updates (`Tensor` of shape `(K, A, B)`, float32).

    Returns:
        `Tensor` of shape `(K, A, B)`, float32.
    """
    a, b, c = COEFFICIENTS
    tall = updates.shape[1] > updates.shape[2]
    x = updates.mT if tall else updates
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Float32Muon(torch.optim.Optimizer):
    """`torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`, computed in float32, matrices of one shape at a time.

    Args:
        params: matrices.
        lr (`float`): as for AdamW.
        weight_decay (`float`): decoupled.
        momentum (`float`, in [0, 1)): Nesterov's.
    """

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        wrong = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if wrong:
            raise ValueError(f"params holds tensors of shapes {wrong}, but Muon takes matrices alone")

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all matrices that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                self._update(parameters, shape, **{key: group[key] for key in ("lr", "weight_decay", "momentum")})
        return loss

    def _update(self, parameters: list[Tensor], shape: torch.Size, lr: float, weight_decay: float, momentum: float):
        updates = []
        for parameter in parameters:
            state, grad = self.state[parameter], parameter.grad
            assert grad is not None  # as `step` has chosen them
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
            updates.append(grad.lerp(buffer, momentum))
        size = 0.2 * max(shape) ** 0.5  # the root mean square of an update of AdamW
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, list(orthogonalize(torch.stack(updates)).unbind()), alpha=-lr * size)
