"""What becomes of an update that would leave behind what is not finite."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter, widened
from jax_lrreg._optax_state import schedules_gone_on
from jax_lrreg.training.accumulate import has_primitive
from jax_lrreg.training.state import State


class Proposal(NamedTuple):
    """An update that is not made yet: what it would leave behind, and the way there."""

    params: optax.Params
    opt_state: optax.OptState
    updates: optax.Updates


class Outcome(NamedTuple):
    """What became of it: the state, the size of the way if asked for, whether it was made.

    And the rate of the schedule that was given, or None.
    """

    state: State
    update_norm: jax.Array | None
    sound: jax.Array
    rate: jax.Array | None


def but(taken: jax.Array | None, spike: jax.Array | None) -> jax.Array | None:
    """Whether an update is taken that is no spike either; None where nothing is to be judged."""
    if spike is None:
        return taken
    return ~spike if taken is None else taken & ~spike


def guarded(
    taken: jax.Array | None,
    propose: Callable[[], Proposal],
    is_sound: Callable[[Proposal], jax.Array],
    make: Callable[[Proposal], Outcome],
    old: State,
    rate: Callable[[], jax.Array | None],
) -> Outcome:
    """Makes the proposed update, unless that would leave behind what is not finite.

    Args:
        taken: whether loss, gradient and the new model state are finite. If not, it is the batch's
            fault, and all stays as it was. None: it is made whatever it is.
        propose: runs the optimizer.
        is_sound: whether what it proposes can be made. If not, it is the optimizer's own fault: all
            stays, but schedules go on, since one that stood still would give the same number for
            ever.
        make: makes it.
        old: the state before.
        rate: that of the outcome. It is asked for in each branch, where XLA sees that the optimizer
            works out the same: it does not see that of what lies on two sides of a branch.
    """
    if taken is None:
        return make(propose())
    propose = jax.jit(propose)  # traced once, for all the places that call it
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: make(propose()).update_norm))

    def skipped() -> Outcome:
        return Outcome(old, nothing, jnp.array(False), rate())

    def refused(proposal: Proposal) -> Outcome:
        opt_state = schedules_gone_on(proposal.opt_state, old.opt_state)
        return skipped()._replace(state=old.replace(opt_state=opt_state))

    def by_branches() -> Outcome:
        # XLA makes one loop for each array on the CPU, and none may write where another has yet to
        # read the old value for a choice between old and new: all moments would be copied, at 9
        # times the time of an update of Adam where memory is the limit. So the choice is between
        # branches. What is looked at are the new parameters alone; the moments are made after that,
        # once more from the old ones, and in place. A line search, whose update takes longer than
        # any copy, is not run twice.
        costly = has_primitive(propose.trace().jaxpr.jaxpr, "while", "scan")

        def tried() -> Outcome:
            first = propose()

            def again() -> Outcome:
                opt_state = (first if costly else propose()).opt_state
                return make(first._replace(opt_state=opt_state))

            return jax.lax.cond(is_sound(first), again, lambda: refused(first))

        return jax.lax.cond(taken, tried, skipped)

    def by_selection() -> Outcome:
        # Other compilers look at the numbers in the loop that makes them, and a branch would wait
        # for the host.
        proposal = propose()
        sound, outcomes = is_sound(proposal), (make(proposal), refused(proposal), skipped())
        choice = lambda a, b, c: jnp.where(taken, jnp.where(sound, a, b), c)  # noqa: E731
        return jax.tree.map(choice, *outcomes)

    return jax.lax.platform_dependent(cpu=by_branches, default=by_selection)


def stays_finite(new: optax.Params, old: optax.Params) -> jax.Array:
    """Whether every number that was finite before still is."""
    leaves = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    pairs = [(after, before) for after, before in leaves if is_parameter(after)]
    if not pairs:
        return jnp.array(True)

    def exactly() -> jax.Array:
        lost = [jnp.any(jnp.isfinite(old) & ~jnp.isfinite(new)) for new, old in pairs]
        return ~jnp.any(jnp.stack(lost))

    def at_a_glance() -> jax.Array:
        # On the CPU a sum is the quickest look. It is finite only if each number is; if it is not,
        # the numbers may still be what they were, or too large to be added up.
        total = sum(jnp.sum(widened(new)) for new, _ in pairs)
        return jax.lax.cond(jnp.isfinite(total), lambda: jnp.array(True), exactly)

    return jax.lax.platform_dependent(cpu=at_a_glance, default=exactly)
