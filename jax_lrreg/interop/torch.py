"""`from_torch`: the time-driven schedulers of `torch.optim.lr_scheduler`, and transformers' `get_scheduler`."""

from typing import Any

from jax_lrreg.interop.peer import of_group, refused, require_agreement, value_of
from jax_lrreg.interop.torch_chains import convert
from jax_lrreg.interop.torch_single import MODULE, name_in_torch
from jax_lrreg.schedules import Schedule


def from_torch(scheduler: Any, group: int | None = None) -> Schedule:
    """The equal of a scheduler of `torch.optim.lr_scheduler`, or of transformers' `get_scheduler`.

    Our step is its `last_epoch`, the number of times `scheduler.step()` has been called. PyTorch computes
    recursively what has a closed form, and drifts from it by a few millionths in a million steps. At its very
    last step, `total_steps`, a linear `OneCycleLR` goes below zero, where ours stays at the end value.

    Args:
        scheduler: the live object, at any point of its run.
        group: which parameter group, where they differ.

    Raises:
        ValueError: it follows a metric, has a function of the user's, is a class of the user's, chains what has
            no closed form, or its optimizer has been changed by something else.

    Example:
        >>> from_torch(torch.optim.lr_scheduler.StepLR(optimizer, step_size=30))  # doctest: +SKIP
        Step(0.1, steps=30)
    """
    name = name_in_torch(scheduler)
    if name is None:
        module = type(scheduler).__module__
        if type(scheduler).__qualname__ == "GreedyLR" and module.startswith("transformers."):
            raise refused(scheduler, "it follows a metric; see schedules.Greedy.like_transformers")
        raise refused(scheduler, f"from_torch knows the schedulers of {MODULE} itself")
    leaf = _first_leaf(scheduler)
    count = len(leaf.optimizer.param_groups)

    def of(index: int) -> Schedule:
        start = _start(scheduler, index)
        schedule = convert(scheduler, index, start)
        now = scheduler if hasattr(scheduler, "last_epoch") else leaf
        if now.last_epoch < 0 or not hasattr(scheduler, "_last_lr"):
            return schedule
        scale = max([abs(start), *(abs(value_of(lr)) for lr in leaf.base_lrs)])
        return require_agreement(
            scheduler, schedule, now.last_epoch, value_of(scheduler._last_lr[index]), scale
        )

    return of_group(scheduler, group, count, of)


def _first_leaf(s: Any) -> Any:
    return _first_leaf(s._schedulers[0]) if hasattr(s, "_schedulers") else s


def _start(s: Any, group: int) -> float:
    """The learning rate of the optimizer before the first scheduler changed it."""
    leaf = _first_leaf(s)
    if not hasattr(leaf, "base_lrs"):
        return value_of(leaf.optimizer.param_groups[group]["lr"])
    return value_of(leaf.optimizer.param_groups[group].get("initial_lr", leaf.base_lrs[group]))
