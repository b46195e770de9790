"""Schedules, penalties and averages as text and as plain dictionaries, there and back.

`parse(repr(x)) == x` for every object that prints in full: one without functions, traced values,
arrays of more than 8 numbers or trees of more than 8 leaves. `from_dict(to_dict(x)) == x` for long
arrays and trees as well. `register` makes both true of objects of one's own.

Nothing is evaluated: the text is read as an expression of calls, methods, numbers, strings, lists,
tuples, `+`, `*`, `/` and unary minus, over a closed set of names, so it may come from anyone.

Example:
    >>> lr = parse("0.5 * Cosine(1e-3, steps=10_000).warmup(500)")
    >>> parse(repr(lr)) == lr
    True
    >>> parse("Constant(1e-3).warmup(steps=5, shap='cosine')")
    Traceback (most recent call last):
    ValueError: warmup has no argument `shap`; its arguments are steps, init_value, shape, power
    >>> from_dict(to_dict(lr)) == lr
    True
"""

from jax_lrreg.text.dictionary import from_dict as from_dict
from jax_lrreg.text.dictionary import to_dict as to_dict
from jax_lrreg.text.expression import parse as parse
from jax_lrreg.text.vocabulary import register as register
