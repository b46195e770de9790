"""PyTorch's AdamW with a schedule, clipping and weight decay, for `update_cost.py`."""

from collections.abc import Callable

import numpy as np
import torch


def contenders(
    params: list[np.ndarray], grads: list[np.ndarray], decay: float
) -> dict[str, Callable[[], None]]:
    """One update each, by the names of the implementations."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "torch foreach": updater(params, grads, decay, device, foreach=True),
        "torch fused": updater(params, grads, decay, device, fused=True),
    }


def threads() -> str:
    return f"torch {torch.__version__} with {torch.get_num_threads()} threads"


def updater(
    params: list, grads: list, decay: float, device: str, **kind: bool
) -> Callable[[], None]:
    weights = [torch.nn.Parameter(torch.tensor(p, device=device)) for p in params]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = torch.tensor(grad, device=device)
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=decay, **kind)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        schedule.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return update
