"""The average that stands for a cooldown, kept along a run or made of checkpoints on disk."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, is_parameter, known, leaves, widened
from jax_lrreg._check import require, require_number, require_whole
from jax_lrreg._struct import call_text, pytree, static
from jax_lrreg.averages.base import Average, RingState, combined, copies_of, put
from jax_lrreg.schedules.base import Constant, Schedule
from jax_lrreg.schedules.ramps import require_fall


@pytree
class Cooldown(Average):
    """What a cooldown over the latest `steps` updates would have come to, without cooling down.

        value = sum over j from 0 to steps - 1 of (w_j - w_{j+1}) params_j

    where params_j are the latest `steps` parameters, the oldest first, and w falls from w_0 = 1 to
    w_steps = 0 by the `shape`. Summed by parts, that is where a run would be whose updates are
    those of this one times w_j. So it is exact where an update does not depend on the parameters,
    and near to a real cooldown late in a run: `benchmarks/cooldown_average.py` has how near. It can
    be read at any step of a run at a constant rate, and foretells what a cooldown there would
    bring. In a younger run the window is what there is.

    The parameters are held as means of `bins` stretches of the run. Between their middles, the way
    is taken as straight.

    Attributes:
        steps: how many updates the cooldown takes; a whole number >= 1.
        shape: one of those of `Schedule.cooldown`.
        bins: how many copies of the parameters are held; a whole number >= 2. With as many as
            `steps`, each copy is one update and nothing is approximated.
        power: exponent of the shape `power`; positive.
        rate: ratio of the shape `exponential`; positive.

    Source:
        Tian et al., WSM: decay-free learning rate schedule via checkpoint merging for LLM
        pre-training, 2025 (arXiv:2507.17634), theorem 3.1.

    Example:
        >>> average = Cooldown(4)
        >>> state = average.init(jnp.float32(0.0))
        >>> for step in range(10):  # the parameters after the update `step` are -1, -2, ..., -10
        ...     state = average.update(state, jnp.float32(-step - 1), step)
        >>> print(average.value(state))  # from -6 on, updates of -1 times 1, 3/4, 1/2, 1/4
        -8.5
    """

    steps: int = static()
    _: KW_ONLY
    shape: str = static(default="linear")
    bins: int = static(default=8)
    power: float = static(default=2.0)
    rate: float = static(default=0.1)

    def __post_init__(self):
        require_whole(self, "steps", self.steps, 1, LAST_STEP)
        require_whole(self, "bins", self.bins, 2, LAST_STEP)
        require_fall("Cooldown", self.shape, self.power, self.rate)
        for name in ("power", "rate"):  # `value` needs them: they are structure
            plain = isinstance(getattr(self, name), int | float)
            require(plain, self, name, getattr(self, name), "a Python number", TypeError)

    @property
    def _size(self) -> int:
        """How many updates a full bin holds: the least for which the oldest middle is far enough.

        One bin is being filled, and may hold one update only. The middle of the oldest is then
        (bins - 3/2) size + 1/2 updates back, and the window begins steps - 1 updates back.
        """
        return max(1, -(-(2 * self.steps - 3) // (2 * self.bins - 3)))

    def __repr__(self):
        return f"averages.{call_text(self)}"  # a schedule has the plain name

    def init(self, params):
        return RingState(copies_of(params, self.bins), jnp.zeros((), jnp.int32))

    def update(self, state, params, step, where=True):
        del step  # what it counts are the updates that it has seen
        number, done = state.count // self._size, state.count % self._size
        ring = put(state.ring, params, number % self.bins, 1 / (done + 1), where)
        return RingState(ring, state.count + jnp.asarray(where))

    def value(self, state):
        size, age = self._size, jnp.arange(self.bins)  # of a bin: 0 is the one being filled
        number, last = (state.count - 1) // size, (state.count - 1) % size + 1
        # The middles of the bins, in updates back from the newest.
        middles = jnp.where(age == 0, (last - 1) / 2, last + (age - 0.5) * size - 0.5)
        # A bin not yet begun holds the first parameters of all: they are one update further back
        # than the oldest. So there is a straight line also where only one bin has been begun.
        middles = jnp.where(age == number + 1, state.count, middles)
        length = jnp.clip(state.count, 1, self.steps)
        fall = _fall(length, self.shape, self.power, self.rate)
        amounts = jnp.diff(fall(jnp.maximum(length - jnp.arange(self.steps + 1), 0)))
        back = jnp.arange(self.steps, dtype=jnp.float32)

        def share(one: jax.Array) -> jax.Array:
            """What a bin gets of all amounts: each is split between the middles beside it."""
            return jnp.sum(amounts * jnp.interp(back, middles, one, left="extrapolate"))

        by_age = jax.vmap(share)(jnp.eye(self.bins))
        return combined(state.ring, by_age[(number - age) % self.bins])


def weights(shape: str, count: int, *, power: float = 2.0, rate: float = 0.1) -> jax.Array:
    """How much each of `count` checkpoints counts in the average that stands for a cooldown.

        weights[j] = w(j / count) - w((j + 1) / count)

    where w falls from 1 to 0 by the `shape`; the checkpoints are in equal distances, the oldest
    first, taken at the end of each stretch. The sum is 1.

    Args:
        shape: one of those of `Schedule.cooldown`.
        count: a whole number >= 1.
        power: exponent of the shape `power`; positive.
        rate: ratio of the shape `exponential`; positive.

    Example:
        >>> print(weights("linear", 4))
        [0.25 0.25 0.25 0.25]
    """
    count = require_whole("weights", "count", count, 1, LAST_STEP)
    require_fall("weights", shape, power, rate)
    return -jnp.diff(_fall(count, shape, power, rate)(jnp.arange(count + 1)))


def merge(
    params: Sequence[chex.ArrayTree], weights: chex.Array | Sequence[float]
) -> chex.ArrayTree:
    """The weighted sum of parameters, such as checkpoints on disk, in float32 and then their dtype.

    Args:
        params: trees of the same paths, shapes and dtypes.
        weights: a number for each tree; their sum is 1. See `weights`.

    Example:
        >>> print(merge([jnp.float32(1.0), jnp.float32(2.0)], [0.5, 0.5]))
        1.5
    """
    # Of one tree the names or the rows would be taken for trees.
    several = isinstance(params, Iterable) and not isinstance(params, Mapping)
    trees = list(params) if several else []
    require(len(trees) > 0, "merge", "params", params, "a list of at least one tree")
    forms = [
        {path: f"{jnp.result_type(x)}{list(jnp.shape(x))}" for path, x in leaves(tree)}
        for tree in trees
    ]
    for index, form in enumerate(forms):
        odd = dict(sorted(form.items() ^ forms[0].items())[:2])
        require(not odd, "merge", f"params[{index}]", odd, "a tree of the form of params[0]")
    weights = weights if isinstance(weights, jax.Array) else np.asarray(weights)
    allowed = f"{len(trees)} numbers whose sum is 1, one for each tree"
    require_number("merge", "weights", weights, allowed, lambda x: x.shape == (len(trees),))
    if known(weights):
        total = float(np.sum(np.asarray(weights, np.float64)))
        require(abs(total - 1) < 1e-4, "merge", "weights", weights, allowed)

    def one(*values: chex.Array) -> chex.Array:
        if not is_parameter(values[-1]):
            return values[-1]
        total = sum(w * widened(value) for w, value in zip(weights, values, strict=True))
        return jnp.asarray(total, jnp.result_type(values[-1]))

    return jax.tree.map(one, *trees)


def _fall(steps: chex.Numeric, shape: str, power: float, rate: float) -> Schedule:
    """From 1 to 0 in so many steps."""
    return Constant(1.0).cooldown(steps, at=0, shape=shape, power=power, rate=rate)
