"""What makes a run this run: texts by name, which a checkpoint keeps and a resume compares."""

from collections.abc import Iterable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._optax_state import nodes
from jax_lrreg.checkpoints.fingerprint import Fingerprint, program_of, text_of
from jax_lrreg.checkpoints.notes import Json
from jax_lrreg.schedules import Schedule
from jax_lrreg.training.batch import Batch
from jax_lrreg.training.data import ArrayData, Stream
from jax_lrreg.training.state import State, is_function, optimizer_of
from jax_lrreg.training.step import Step
from jax_lrreg.transforms.rules import ScaleByRulesState

DataLike = ArrayData | Iterable[Batch]
LIBRARIES = ("jax", "jaxlib", "optax", "flax", "chex", "numpy", "orbax-checkpoint", "jax_lrreg")


def identity(step: Step, state: State, data: DataLike, start: int, control: Json) -> Fingerprint:
    """The plan of a run, by the names of the arguments that make it.

    `control` is what the controllers hear, and how often, where that is an evaluation's metric.
    """
    update, rules = step.update, [ScaleByRulesState]
    ruled = any(isinstance(node, tuple(rules)) for node in nodes(state.opt_state))
    growing = isinstance(update.accumulate, Schedule)
    return {
        "learning_rate": _function_text(update.learning_rate),
        "penalty": _function_text(update.penalty),
        "rules": _rules_text(step, state) if ruled else "None",
        "trainable": text_of(state.trainable),
        "hyper": text_of(state.hyper),
        "tx state": _structure_text(state.opt_state),
        "tx": _program(step, state),
        "accumulate": text_of(update.accumulate) if growing else update.accumulate,
        "average": text_of(update.average),
        "loss_scale": text_of(update.loss_scale),
        "on_spike": text_of(update.on_spike),
        "on_nonfinite": update.on_nonfinite,
        "key": text_of(state.key),
        **_data_texts(data),
        "first step": start,
        "control_on": control,
    }


def versions() -> dict[str, str]:
    """Of the libraries that make the numbers, and the devices; a change of them is told."""
    devices = jax.devices()
    here = f"{len(devices)} {devices[0].device_kind}"
    return {name: _version(name) for name in LIBRARIES} | {"devices": here}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _function_text(value: object) -> str:
    """The text of an object; of an Optax schedule its program, since it has no text."""
    text = text_of(value)
    if callable(value) and is_function(value):
        try:
            text += f" {program_of(value, jnp.zeros((), jnp.int32))}"
        except Exception:  # a function of hyperparameters, whose text stands under `hyper`
            return text
    return text


def _structure_text(opt_state: optax.OptState) -> str:
    """The kinds of an optimizer's states, and a shape for each leaf."""
    names = [type(node).__name__ for node in nodes(opt_state)]
    shapes = [f"{jnp.result_type(x)}{list(np.shape(x))}" for x in jax.tree.leaves(opt_state)]
    return f"{', '.join(names)} of {len(shapes)} arrays: {', '.join(shapes)}"


def _updated(step: Step, state: State, tables: list | None = None) -> tuple[Any, tuple]:
    """The optimizer's update as a function of arrays, and shapes of what it takes."""
    update, params = step.update, state.trained
    asked = {} if tables is None else {"applied_rules": tables}

    def function(grads, opt_state, params, hyper, value):
        optimizer = optimizer_of(update.tx, hyper)
        extra = {"value": value, "grad": grads, "value_fn": lambda _, **__: value}
        return optimizer.update(grads, opt_state, params, **extra, **asked)

    given = (params, state.opt_state, params, state.hyper, jnp.zeros(()))
    shape = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))  # noqa: E731
    return function, jax.tree.map(shape, given)


def _program(step: Step, state: State) -> dict[str, Any] | None:
    """What the optimizer computes: the same state may belong to another one."""
    try:
        function, given = _updated(step, state)
        return program_of(function, *given)
    except Exception:  # one that asks for more than can be made up here: its state is compared
        return None


def _rules_text(step: Step, state: State) -> str:
    tables: list[Any] = []
    function, given = _updated(step, state, tables)
    jax.eval_shape(function, *given)
    return "; ".join(map(text_of, tables))


def _data_texts(data: DataLike) -> dict[str, Json]:
    if isinstance(data, ArrayData):
        names = ("size", "batch_size", "shuffle", "key", "remainder")
        given = {name: getattr(data, name) for name in names}
        given["key"] = text_of(data.key)
        return {"data": "ArrayData", **{f"data.{name}": value for name, value in given.items()}}
    if isinstance(data, Stream):
        return {"data": "Stream", "data.remainder": data.remainder}
    length = {"data.size": len(data)} if isinstance(data, list | tuple) else {}
    return {"data": type(data).__name__, **length}
