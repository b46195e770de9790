"""Where the phases of a schedule begin and what they are called, for pictures."""

from typing import Any

import numpy as np

from jax_lrreg.schedules.algebra import Product, Sum
from jax_lrreg.schedules.base import Schedule
from jax_lrreg.schedules.ramps import Cooldown, Warmup
from jax_lrreg.schedules.timeline import Extended, InUnits, Joined, Shifted, Stretched


def phases(schedule: Any, per_step: float = 1.0) -> list[tuple[float, str]]:
    """Where the phases of a schedule begin, in steps, and what they are called."""
    if isinstance(schedule, Warmup):
        length = float(np.asarray(schedule.steps)) / per_step
        return [
            (0.0, "warmup"),
            *((length + at, name) for at, name in phases(schedule.schedule, per_step)),
        ]
    if isinstance(schedule, Joined):
        found, begin = [], 0.0
        for piece, length in zip(schedule.pieces, (*schedule.lengths, 0), strict=True):
            found += [(begin + at, name) for at, name in phases(piece, per_step)]
            begin += float(np.asarray(length)) / per_step
        return found
    if isinstance(schedule, Cooldown | Extended):
        start = float(np.asarray(schedule.at)) / per_step
        label = "cooldown" if isinstance(schedule, Cooldown) else "extended"
        return [
            *((at, name) for at, name in phases(schedule.schedule, per_step) if at < start),
            (start, label),
        ]
    if isinstance(schedule, Shifted):
        moved = float(np.asarray(schedule.steps)) / per_step
        return [(max(at + moved, 0.0), name) for at, name in phases(schedule.schedule, per_step)]
    if isinstance(schedule, Stretched):
        return phases(schedule.schedule, per_step / float(np.asarray(schedule.factor)))
    if isinstance(schedule, InUnits):
        return phases(schedule.schedule, per_step * float(np.asarray(schedule.per_step)))
    if isinstance(schedule, Product | Sum):
        pair = [phases(schedule.first, per_step), phases(schedule.second, per_step)]
        return max(pair, key=len)
    inner = getattr(schedule, "schedule", None)
    if isinstance(inner, Schedule):
        return phases(inner, per_step)
    return [(0.0, type(schedule).__name__.lower() if isinstance(schedule, Schedule) else "")]
