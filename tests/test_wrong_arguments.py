"""Every public class x every kind of wrong argument: an error of ours that names the argument."""

import dataclasses
import inspect
import types

import jax.numpy as jnp
import laws
import laws_penalties
import numpy as np
import optax
import pytest

from jax_lrreg import averages, controllers, penalties, schedules, select, transforms
from jax_lrreg._struct import is_pytree
from jax_lrreg.text import vocabulary

SPACES = (schedules, penalties, averages, controllers, transforms, select)
CLASSES = {
    name: thing
    for space in SPACES
    for name, thing in vars(space).items()
    if is_pytree(thing) and not name.startswith("_")
}
WRONG = {
    "object": object(),
    "text": "nonsense",
    "class": int,
    "module": types,
    "bytes": b"1",
    "complex": 1j,
    "set": {1.0},
    "nan": float("nan"),
    "array of objects": np.array([None, "a"], object),
    "array of texts": np.array(["a", "b"]),
    "array of nan": jnp.array([1.0, np.nan]),
    "list of objects": [object()],
    "huge": 10**400,
}
# What is meant by some: a class is a function too, and an integer of any size is a count of axes.
RIGHT = {
    ("function", "class"),
    ("reference", "complex"),
    ("iterations", "huge"),
    ("stacked", "huge"),
}
# By the operator or the pair that gives it; and what no one gives.
SAID = {"factor": "*", "lengths": "length"}
CARRIED = [("SpectralNorm", "vectors")]


def parts(value):
    """An object of ours and all that it is made of."""
    if is_pytree(type(value)):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from parts(item)


WHOLE = [
    *laws.SCHEDULES,
    *(case.penalty for case in laws_penalties.PENALTIES),
    2 * penalties.L1(0.1).on("**") + penalties.L2(0.1).on(lambda path, value: True),
    schedules.Function(np.sqrt),
    select.factors([("**", 1.0)]),
    select.factors(lambda path, value: 1.0),
    controllers.Averaged(controllers.ReduceOnPlateau(), window=3),
    controllers.Smoothed(controllers.Greedy(0.9, patience=2), window=3),
    averages.EMA(averages.RisingDecay(0.99)),
    averages.Uniform(),
    averages.Latest(3),
    averages.Cooldown(10),
    controllers.LossDecay(),
    controllers.HypergradientDescent(),
    transforms.Metric(0.999),
]
EXAMPLES = {type(part): part for whole in WHOLE for part in parts(whole)}
FIELDS = [(name, field.name) for name in CLASSES for field in dataclasses.fields(CLASSES[name])]
FIELDS = [pair for pair in FIELDS if pair not in CARRIED]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_wrong_argument_is_refused_by_its_name(name, field):
    cls = CLASSES[name]
    given = {f.name: getattr(EXAMPLES[cls], f.name) for f in dataclasses.fields(cls)}
    cls(**given)
    wrong = []
    for kind, value in WRONG.items():
        if (field, kind) in RIGHT:
            continue
        try:
            cls(**{**given, field: value})
            wrong.append(f"{kind} is accepted")
        except (ValueError, TypeError) as error:
            message = str(error)
            if f"`{field}`" not in message and f"`{SAID.get(field)}`" not in message:
                wrong.append(f"{kind}: {message}")
            if len(message) > 600 or "\n" in message:
                wrong.append(f"{kind}: {len(message)} characters")
    assert not wrong


# Arguments that fit, by their names: every function takes what its required ones are called.
FITS = {
    "alpha": 0.1,
    "at": 20,
    "controller": controllers.ReduceOnPlateau(),
    "decay": 0.5,
    "factor": 0.5,
    "high": 1.0,
    "init_value": 0.01,
    "inner": optax.sgd(0.1),
    "l1_ratio": 0.5,
    "learning_rate": 0.1,
    "low": 0.1,
    "model_dim": 64,
    "order": ["**"],
    "params": {"w": jnp.ones(2)},
    "patience": 3,
    "pattern": "**",
    "peak_value": 0.1,
    "penalty": penalties.L1(0.1),
    "per_step": 0.5,
    "pieces": [(0.1, 5), (0.2, None)],
    "rules": [("**", 1.0)],
    "shift": 3,
    "step_decay": 0.98,
    "steps": 10,
    "timescale": 10,
    "total_steps": 60,
    "tx": optax.MultiSteps(optax.sgd(0.1), 2),
    "up_steps": 5,
    "warmup_steps": 5,
}
OWN = {"transforms.hypergradient_descent": {"controller": controllers.HypergradientDescent()}}
SCHEDULE = schedules.Cosine(0.1, steps=40)
FUNCTIONS = {
    **{f"Schedule.{name}": getattr(SCHEDULE, name) for name in vocabulary.methods(SCHEDULE)},
    "Penalty.on": penalties.L1(0.1).on,
    **{
        f"{cls}.{name}": thing
        for cls in CLASSES
        for name, thing in vocabulary.constructors(CLASSES[cls]).items()
    },
    **{
        f"{space.__name__.rpartition('.')[2]}.{name}": thing
        for space in (transforms, select)
        for name, thing in vars(space).items()
        if inspect.isfunction(thing) and thing.__module__.startswith("jax_lrreg.")
        if name not in ("measure", "leaves")  # of an optimizer's inside; and of any tree
    },
}
ARGUMENTS = [
    (name, argument.name)
    for name, function in FUNCTIONS.items()
    for argument in inspect.signature(function).parameters.values()
    if argument.name != "params"  # any tree may hold parameters
    if all(
        p.name in FITS
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty
    )
]
MEANT = {  # a text is a pattern, a class is a function, a number is a tree of one leaf
    ("pattern", "text"),
    ("pattern", "class"),
    ("rules", "text"),
    ("rules", "class"),
    ("metric", "class"),
    ("window_size", "huge"),
}


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_wrong_argument_of_a_function_is_refused_by_its_name(name, argument):
    function = FUNCTIONS[name]
    required = [
        p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty
    ]
    given = {**{key: FITS[key] for key in required}, **OWN.get(name, {})}
    function(**given)
    wrong = []
    for kind, value in WRONG.items():
        if (argument, kind) in MEANT:
            continue
        try:
            function(**{**given, argument: value})
            wrong.append(f"{kind} is accepted")
        except (ValueError, TypeError) as error:
            said = {"pattern": ("`pattern`", "`rules`")}.get(argument, (f"`{argument}`",))
            if not any(word in str(error) for word in said):
                wrong.append(f"{kind}: {error}")
    assert not wrong
