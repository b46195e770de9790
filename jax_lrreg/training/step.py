"""One jitted update: loss, penalty, gradient, optimizer, and the metrics of this very update."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_choice
from jax_lrreg._optax_state import made_one, may_overflow, no_new_nan, nodes, update_count
from jax_lrreg._struct import arguments_text
from jax_lrreg.averages import Average
from jax_lrreg.penalties import Penalty
from jax_lrreg.schedules import Schedule
from jax_lrreg.training import noise
from jax_lrreg.training.accumulate import accumulated, examples_in, most_of, used_of
from jax_lrreg.training.averaging import average_of, kind_of, with_average
from jax_lrreg.training.batch import Batch, check_mask, count_examples
from jax_lrreg.training.guard import Outcome, Proposal, but, guarded, stays_finite
from jax_lrreg.training.loss import (
    LossFn,
    Now,
    PenaltyLike,
    called,
    check_penalty,
    loss_and_metrics,
    penalty_of,
    takes_now,
)
from jax_lrreg.training.mesh import around, cut, of_all, refuse_unfit
from jax_lrreg.training.metrics import (
    AT_END,
    NORMS,
    Metrics,
    Rate,
    at_end,
    check_monitors,
    check_rate,
    given_rate,
    nonfinite_message,
    norm,
    rates,
    rates_of_rules,
    refuse_other_rate,
)
from jax_lrreg.training.modules import Adapter, ModelState, Module, adapter_of
from jax_lrreg.training.precision import check_loss_scale, rescaled, scaled_gradient
from jax_lrreg.training.sharding import pinned
from jax_lrreg.training.spikes import Spike, check_spike, entered, judged
from jax_lrreg.training.state import (
    Optimizer,
    State,
    check_opt_state,
    in_dtypes_of,
    is_function,
    optimizer_of,
    require_optimizer,
)
from jax_lrreg.training.trainable import eased
from jax_lrreg.transforms.rules import ScaleByRulesState

# What a step gives back: a key in and out costs the host as much as the rest of a small call.
FIRST = ("step", "params", "opt_state", "model_state")
CHANGING = (*FIRST, "average", "loss_scale", "spikes", "noise")
KEPT = ("key", "hyper", "begun", "trainable", "averaging")
changing_of, kept_of = attrgetter(*CHANGING), attrgetter(*KEPT)


def make_step(
    module: Module,
    loss_fn: LossFn,
    tx: Optimizer,
    *,
    penalty: PenaltyLike | None = None,
    learning_rate: Rate | None = None,
    accumulate: int | Schedule = 1,
    on_nonfinite: str = "skip",
    ema: chex.Numeric | None = None,
    loss_scale: Any = None,
    donate: bool = True,
    monitors: Sequence[str] = ("grad_norm",),
    on_spike: Spike | None = None,
    average: Average | None = None,
) -> "Step":
    """A jitted training step for a Linen module, an NNX module or a plain function.

    The update is that of `loss = data_loss + penalty`, where `data_loss` is what `loss_fn` returns.
    The optimizer gets `value=loss`, `grad=` and `value_fn=` if it asks for them.

    Args:
        module: as in `init`.
        loss_fn: `loss_fn(model, batch) -> loss`, or `(loss, {name: scalar})`. `model` is callable:
            its parameters, mutable state and keys are bound to it. All arrays of `batch` have as
            many examples along axis 0; scalars and keys are shared by all. A third argument without
            a default is `now`: `now.step`, the number of this update as the optimizer's schedules
            see it, and `now.key`, a key of this update and micro-batch.
        tx: an Optax transformation, or `hyper -> tx`.
        penalty: a `Penalty`, or `hyper -> penalty`, added to the loss once per update. Penalties
            placed in `tx` are your own choice and not added again.
        learning_rate: what `tx` uses (a number, a schedule, or `hyper -> either`), to be reported
            in `metrics["learning_rate"]` as applied: it is read at the optimizer's own count, and
            times the scale of the controllers in `tx`, which are `transforms.scale_by_controller`
            and `hypergradient_descent`. Those in a group of `optax.partition` are reported apart,
            as `metrics["scale/<label>"]`. Where `tx` holds its rate as data, as
            `transforms.scale_by_learning_rate` and `optax.inject_hyperparams` do, that is reported,
            given or not.
        accumulate: into how many micro-batches a batch is split; their gradients are averaged in
            float32, weighted by the sum of `batch["mask"]` where the batch has one. It is one
            update. Or a schedule of whole numbers, for a batch that grows: a batch then has the
            most micro-batches there ever are, of which the first so many are used, and
            `metrics["examples"]` says how many examples that were.
        on_nonfinite: for an update whose loss, gradient or learning rate is not finite, or that
            would leave a parameter or a number of the model's state so: "skip" leaves parameters,
            optimizer, model state and average as they were; "raise" does so and raises; "keep" goes
            on regardless, and looks at nothing. Where loss and gradient are finite, schedules go on
            all the same: one that is NaN at one step, or 0 where D-Adaptation and Prodigy then
            divide 0 by 0, would be asked for that step for ever.
        ema: short for `average=averages.EMA(ema)`: a decay in [0, 1), or None.
        loss_scale: for float16, a `flax.training.dynamic_scale.DynamicScale`: the loss is
            multiplied by it before it is differentiated, the gradient divided by it in float32, and
            it adapts, in `state.loss_scale`: an update that overflows is skipped and lowers it. The
            loss and the gradient norm are reported without it.
        donate: whether the memory of the given state is reused for the new one.
        monitors: what else to report. At each step, "grad_norm", which costs nothing more, and
            "update_norm". Of the state, "param_norm" and "sparsity", the share of exact zeros, and
            for each parameter by its path "param_norm/*" and "sparsity/*": `fit` reads those at the
            end of a log interval only. With `accumulate` of at least 2, "noise_scale": how many
            examples a batch may have before more of them are hardly worth their cost, from the last
            hundred updates.
        on_spike: a `Spike`: an update whose loss or gradient norm stands out from those just before
            is skipped whole; it counts in `metrics["skipped"]`, and alone in `metrics["spikes"]`.
        average: what is averaged of the parameters after each update that is made (the steps of a
            window of `optax.MultiSteps` are one), one of `averages`, or None. It is kept in
            `state.average`; see `averaged`.

    Returns:
        `step(state, batch) -> (state, metrics)`, where `metrics` has `loss`, `data_loss`,
        `penalty`, `skipped` (1 if this update was), the monitors, and the names that `loss_fn`
        returns.

    Raises:
        TypeError, ValueError: by the name of the argument; at the first call, by that of a leaf.

    Example:
        >>> from jax_lrreg import training
        >>> apply = lambda params, x: x @ params
        >>> tx = optax.sgd(0.1)
        >>> state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2))
        >>> step = make_step(apply, lambda model, batch: jnp.mean((model(batch) - 1) ** 2), tx)
        >>> state, metrics = step(state, jnp.eye(2))
        >>> print(metrics["loss"], state.params)
        1.0 [0.1 0.1]
    """
    if isinstance(penalty, Penalty):
        # A reference in it may be the parameters of a state that is going to be donated.
        penalty = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, penalty)
    update = Update(
        adapter_of(module),
        loss_fn,
        tx,
        penalty=penalty,
        learning_rate=learning_rate,
        accumulate=accumulate,
        on_nonfinite=on_nonfinite,
        average=average_of(ema, average),
        loss_scale=loss_scale,
        monitors=monitors,
        on_spike=on_spike,
    )
    return Step(update, donate, getattr(module, "__name__", type(module).__name__))


class Step:
    """A compiled update `step(state, batch) -> (state, metrics)`; made by `make_step`.

    Attributes:
        body: the same as a pure function, without donation, for your own `scan` or `vmap`, and
            without the monitors of `at_end`. A loop that carries the state begins with
            `complete(state)`.
        at_end: `state -> {name: scalar}`, compiled: the monitors that are read from a state.
        on_nonfinite: what happens to an update that is not finite.
        donate: whether a call takes the memory of the state it is given.
        update: what it was made of.
    """

    def __init__(self, update: "Update", donate: bool, name: str):
        monitors = update.monitors
        self.body = jax.jit(update)  # traced once, also where a loop calls it
        read = jax.jit(lambda state: at_end(state, monitors))
        self.at_end = read if set(monitors) & set(AT_END) else lambda _: {}
        self.on_nonfinite, self.donate, self._name = update.on_nonfinite, donate, name
        self.update = update

        def call(changing: tuple, kept: tuple, batch: Batch) -> Any:
            state, metrics = self.body(_assembled(changing, kept), batch)
            metrics |= at_end(state, monitors)
            if not donate:  # what the step left alone would be the same array in both states
                state = jax.tree.map(jnp.copy, state)
            return changing_of(state), metrics

        options: dict[str, Any] = {"donate_argnums": 0 if donate else ()}
        self._call, self._calls = jax.jit(call, **options), dict[Any, Any]()  # by place on a mesh
        self._on_mesh = lambda to: jax.jit(call, out_shardings=(changing_of(to), None), **options)

    def __repr__(self) -> str:
        function = getattr(self.update.loss_fn, "__name__", type(self.update.loss_fn).__name__)
        return f"Step({', '.join([self._name, function, *arguments_text(self.update, skip=3)])})"

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One update. The given state is donated: go on with the one returned."""
        state = self.complete(state)
        check_mask(batch, "step", "batch")
        kept: Any = kept_of(state)
        try:
            if isinstance(getattr(state.step, "sharding", None), jax.sharding.NamedSharding):
                with around(state, "step"):
                    batch = of_all(batch, state, "step")
                    changing, metrics = self._call_for(state)(changing_of(state), kept, batch)
            else:
                changing, metrics = self._call(changing_of(state), kept, batch)
        except (TypeError, ValueError):  # JAX does not say which leaf is no array of numbers
            refuse_unfit(batch, state, "step", "batch")
            raise
        state = _assembled(changing, kept if self.donate else jax.tree.map(jnp.copy, kept))
        if self.on_nonfinite == "raise" and metrics["skipped"] > metrics.get("spikes", 0):
            error = FloatingPointError(nonfinite_message(int(state.step) - 1, metrics))
            error.state = state  # type: ignore[attr-defined]  the one that was given is given away
            error.add_note("step: it is the attribute `state` of this error")
            raise error
        return state, metrics

    def lower(self, state: State, batch: Batch) -> jax.stages.Lowered:
        """The program of a call, lowered; of shapes too, and for devices that are not here."""
        with around(state, "step"):
            call = self._call_for(state := self.complete(state))
            return call.lower(changing_of(state), kept_of(state), batch)

    def _call_for(self, state: State) -> Any:
        """The compiled call whose result lies as the state does."""
        where, key = pinned(state)
        if where is None:
            return self._call
        return self._calls.get(key) or self._calls.setdefault(key, self._on_mesh(where))

    def complete(self, state: State) -> State:
        """The state with the fields that this step keeps: average, loss scale, window of spikes."""
        kind, allowed = type(state).__name__, "a State, from `init`"
        require(isinstance(state, State), "step", "state", kind, allowed, TypeError)
        if jnp.ndim(state.step):
            raise ValueError(
                "step: `state` must be that of one run, got a state of "
                f"{jnp.shape(state.step)} runs: `sweeps.run`, or `jax.vmap` of "
                "`lambda state: training.scan(step, state, data, steps=...)`, trains many at once"
            )
        held = [x for x in (state.step, state.key) if isinstance(x, jax.Array) and known(x)]
        if any(x.is_deleted() for x in held):
            raise ValueError(
                "step: `state` must be the latest one, got one whose memory an earlier call was "
                "given: go on with the state that was returned, or keep a state.copy()"
            )
        return self.update.complete(state)


def _assembled(changing: tuple, kept: tuple) -> State:
    # Without its constructor, which would take a tenth of a small step's time on the host.
    state = object.__new__(State)
    vars(state).update(zip(CHANGING, changing, strict=True), **dict(zip(KEPT, kept, strict=True)))
    return state


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Update:
    """The pure function `(state, batch) -> (state, metrics)` of a step; fields as `make_step`'s."""

    module: Adapter
    loss_fn: LossFn
    tx: Optimizer
    _: dataclasses.KW_ONLY
    penalty: PenaltyLike | None = None
    learning_rate: Rate | None = None
    accumulate: int | Schedule = 1
    on_nonfinite: str = "skip"
    average: Average | None = None
    loss_scale: Any = None
    monitors: Sequence[str] = ("grad_norm",)
    on_spike: Spike | None = None

    def __post_init__(self):
        allowed = "a function (model, batch) -> loss"
        require(is_function(self.loss_fn), "make_step", "loss_fn", self.loss_fn, allowed, TypeError)
        takes_now(self.loss_fn)
        require_optimizer(self.tx)
        check_penalty(self.penalty)
        check_rate(self.learning_rate)
        refuse_other_rate(self.tx, self.learning_rate)
        require_choice("make_step", "on_nonfinite", self.on_nonfinite, ("skip", "raise", "keep"))
        if self.loss_scale is not None:
            check_loss_scale(self.loss_scale, self.on_nonfinite)
        check_monitors(self.monitors)
        few = self.pieces < 2 and "noise_scale" in self.monitors
        allowed = "at least 2 where `monitors` has 'noise_scale'"
        require(not few, "make_step", "accumulate", self.accumulate, allowed)
        check_spike(self.on_spike)

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One update: from top to bottom, this is the algorithm."""
        state, optimizer = self.complete(state), optimizer_of(self.tx, state.hyper)
        check_opt_state(optimizer, state)
        refuse_other_rate(self.tx, self.learning_rate, state.params)
        count_examples(batch, "step", "batch")
        batch = cut(batch, "step", self.pieces)
        params, key = state.trained, jax.random.fold_in(state.key, state.step)
        count = update_count(state.opt_state)
        count = state.step if count is None else count

        # The loss of the data and its gradient, averaged over the micro-batches.
        def data_loss_of(
            params: optax.Params, model_state: ModelState, batch: Batch, key: chex.PRNGKey
        ) -> tuple[jax.Array, tuple[Metrics, ModelState]]:
            return self._data_loss(state.whole(params), model_state, batch, Now(count, key))

        scale = None if self.loss_scale is None else state.loss_scale
        gradient = scaled_gradient(data_loss_of, scale)
        if "noise_scale" in self.monitors:
            gradient = noise.measured(gradient)
        pieces, used = self.pieces, used_of(self.accumulate, count, self.pieces)
        (data_loss, (named, model_state)), grads = accumulated(
            gradient, params, state.model_state, batch, key, pieces, used
        )
        squares = noise.squares(named, grads)
        # The penalty enters here, once, however many micro-batches and devices there are.
        penalty, cost = penalty_of(self.penalty, state.hyper), jnp.zeros(())
        if penalty is not None:
            cost, slopes = penalty.value_and_gradient(params, count)
            grads = jax.tree.map(lambda g, s: g + s.astype(g.dtype), grads, slopes)
        loss, grad_norm = data_loss + cost.astype(data_loss.dtype), norm(grads)
        # JAX's gradient of a complex parameter is the conjugate of the direction that Optax
        # expects.
        grads = jax.tree.map(jnp.conj, grads)
        rate = jax.jit(lambda: given_rate(self.learning_rate, state.hyper, count))
        keeps = self.on_nonfinite == "keep"

        # A line search hands all that is left over to its function, and refuses what that does not
        # take.
        def value_fn(params: optax.Params, applied_rules: object = None) -> jax.Array:
            del applied_rules
            value = data_loss_of(params, state.model_state, batch, key)[0]
            return value if penalty is None else value + penalty(params, count)

        extra = {"value": loss, "grad": grads, "value_fn": value_fn}
        tables: list[Any] = []
        ruled = any(isinstance(node, ScaleByRulesState) for node in nodes(state.opt_state))
        asked = {"applied_rules": tables} if ruled else {}

        def propose() -> Proposal:
            tables.clear()
            updates, opt_state = optimizer.update(grads, state.opt_state, params, **extra, **asked)
            if state.begun is not None:
                held = (optimizer, state.opt_state, count, params, extra)
                updates = eased(updates, state.begun, *held)
            opt_state = in_dtypes_of(opt_state, state.opt_state)
            return Proposal(optax.apply_updates(params, updates), opt_state, updates)

        def make(proposal: Proposal) -> Outcome:
            trained, opt_state, updates = proposal
            new = {"params": state.whole(trained), "model_state": model_state}
            new = state.replace(**new, opt_state=opt_state)
            size = norm(updates) if "update_norm" in self.monitors else None
            return Outcome(new, size, jnp.array(True), rate())

        def is_sound(proposal: Proposal) -> jax.Array:
            if keeps:
                return jnp.array(True)
            sound = stays_finite(proposal.params, params)
            sound &= no_new_nan(proposal.opt_state, state.opt_state)
            sound &= stays_finite(*map(may_overflow, (proposal.opt_state, state.opt_state)))
            return sound if self.learning_rate is None else sound & jnp.isfinite(rate())

        found = {"loss": loss, "data_loss": data_loss, "grad_norm": grad_norm}
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        spike = judged(self.on_spike, state.spikes, found)
        taken = None if keeps else finite & stays_finite(model_state, state.model_state)
        outcome = guarded(but(taken, spike), propose, is_sound, make, state, rate)

        # What goes along with each update, and what is told of this one.
        new, sound = outcome.state, outcome.sound
        named["skipped"] = 1 - sound.astype(jnp.int32)
        if used is not None:
            named["examples"] = examples_in(batch, pieces, used)
        if spike is not None:
            named["spikes"] = spike.astype(jnp.int32)
            new = new.replace(spikes=entered(self.on_spike, state.spikes, found, spike, sound))
        if self.average is not None:
            # Not within `guarded`, where a choice between two states would copy whole rings.
            made = sound & made_one(new.opt_state, state.opt_state, params)
            average = self.average.update(state.average, new.trained, count, where=made)
            new = new.replace(average=average)
        if squares is not None:
            several = pieces if used is None else used
            examples = examples_in(batch, pieces, used)
            means = noise.updated(state.noise, squares, examples, several, sound)
            new, named["noise_scale"] = new.replace(noise=means), noise.scale(means)
        if scale is not None:
            named["loss_scale"] = scale.scale
            new = new.replace(loss_scale=rescaled(scale, finite))
        metrics = {"loss": loss, "data_loss": data_loss, "penalty": cost}
        norms = zip(NORMS, (grad_norm, outcome.update_norm), strict=True)
        metrics |= {name: value for name, value in norms if name in self.monitors}
        metrics |= rates(new.opt_state, outcome.rate) | named
        metrics |= rates_of_rules(tables, metrics, count)
        return new.replace(step=optax.safe_increment(state.step)), metrics

    def complete(self, state: State) -> State:
        """The state with what it keeps from the first update on."""
        if self.average is not None:
            state = with_average(state, self.average, self.kind)
        if self.loss_scale is not None and state.loss_scale is None:
            state = state.replace(loss_scale=self.loss_scale)
        if "noise_scale" in self.monitors and state.noise is None:
            state = state.replace(noise=noise.init())
        if self.on_spike is not None:
            state = state.replace(spikes=self.on_spike.complete(state.spikes))
        return state

    def _data_loss(
        self,
        params: optax.Params,
        model_state: ModelState,
        batch: Batch,
        now: Now,
    ) -> tuple[jax.Array, tuple[Metrics, ModelState]]:
        bound = self.module.bind(params, model_state, now.key)
        loss, named = loss_and_metrics(called(self.loss_fn, bound.model, batch, now))
        return loss, (named, in_dtypes_of(bound.model_state(), model_state))

    @cached_property
    def pieces(self) -> int:
        """How many micro-batches a batch has; of a schedule, the most: up to a million values."""
        return most_of(self.accumulate)

    @cached_property
    def kind(self) -> Average | None:
        """What the average is, as structure of the state."""
        return None if self.average is None else kind_of(self.average)
