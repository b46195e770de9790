"""A factor for each parameter, by its path: the rates of layers, groups and heads in one table."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._arrays import Leaf, Parameters, is_parameter, known, leaves, widened
from jax_lrreg._check import require, require_number
from jax_lrreg.select import FactorFunction, Factors, RulesLike, factors


class ScaleByRulesState(NamedTuple):
    """How many updates have been made: what factors that are schedules see."""

    count: jax.Array


def scale_by_rules(rules: RulesLike) -> optax.GradientTransformationExtraArgs:
    """Multiplies the update of each parameter by a factor that its path decides.

        update <- factor(count) update

    Last in a chain it covers the learning rate and the decay alike, as the parameter groups of
    PyTorch do; before a decoupled penalty it leaves the decay alone. With a factor of 0 no bit of
    the parameter changes. A factor may be a schedule: gradual unfreezing is a list of rules that
    are 0 at first.

    Args:
        rules: pairs `(pattern, factor)`, of which the first that matches a path decides; or what
            `select.layer_decay` and `select.spread` return; or a function `(path, value) ->
            factor`. A factor is a number >= 0, a schedule of the number of updates, or an array, of
            which each entry is for one entry of the parameter's first axis, where layers are
            stacked there.

    Returns:
        An Optax transformation; its state is a count, whatever is scheduled.

    Raises:
        ValueError: at `init`, where no rule covers a parameter, since a rate is not left out in
            silence, or where a pattern matches none.

    Example:
        >>> tx = optax.chain(optax.sgd(0.1), scale_by_rules([("head/*", 10.0), ("**", 1.0)]))
        >>> params = {"body": {"kernel": jnp.ones(1)}, "head": {"kernel": jnp.ones(1)}}
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> print(updates["body"]["kernel"], updates["head"]["kernel"])
        [-0.1] [-1.]
    """
    table = factors(rules)

    def init(params: optax.Params) -> ScaleByRulesState:
        items, count = Parameters(params), jnp.zeros((), jnp.int32)
        table.check(items.paths)
        for item in items:
            first = _factor(table, item, count)
            allowed = f"a schedule of numbers >= 0 at {item.path!r}"
            require_number("scale_by_rules", "factor", first, allowed, lambda x: x >= 0)
        return ScaleByRulesState(count)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        applied_rules: list[Factors | FactorFunction] | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, ScaleByRulesState]:
        del params, extra
        if applied_rules is not None:  # so the training step learns what to report
            applied_rules.append(table)
        structure = jax.tree.structure(updates)
        scaled = [_times(item, _factor(table, item, state.count)) for item in leaves(updates)]
        count = jnp.asarray(optax.safe_increment(state.count))
        return jax.tree.unflatten(structure, scaled), ScaleByRulesState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def _factor(table: Factors | FactorFunction, item: Leaf, count: jax.Array) -> chex.Numeric:
    """The factor of a parameter at this count, of a shape that multiplies it."""
    if not is_parameter(item.value):
        return 1.0
    factor = table.of(item.path, item.value)
    factor = factor(count) if callable(factor) else factor
    shape = np.shape(item.value)
    if np.ndim(factor) == 0:
        return factor
    fits = np.ndim(factor) == 1 and np.shape(factor) == shape[:1]
    allowed = f"a number, or {shape[:1]} of them at {item.path!r}, which has shape {shape}"
    require(fits, "scale_by_rules", "factor", f"shape {np.shape(factor)}", allowed)
    return jnp.reshape(factor, shape[:1] + (1,) * (len(shape) - 1))


def _times(item: Leaf, factor: chex.Numeric) -> chex.Array:
    update = item.value
    if not is_parameter(update) or (known(factor) and np.all(np.asarray(factor) == 1)):
        return update
    # Adding -0.0 changes no number, and not the sign of a -0.0 either; 0.0 would. An infinite
    # update times 0 is NaN.
    scaled = jnp.where(factor == 0, -0.0, widened(update) * factor)
    return scaled.astype(jnp.result_type(update))  # a number of Python has a dtype too
