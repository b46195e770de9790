"""Rates that depend on how deep a layer lies."""

import itertools
import re
from collections.abc import Sequence
from typing import TypeAlias

import chex
import optax

from jax_lrreg._arrays import Parameters
from jax_lrreg._check import require, require_number
from jax_lrreg.select.patterns import matcher, require_alive
from jax_lrreg.select.rules import Factors

Layer: TypeAlias = "str | Sequence[str]"


def layer_decay(params: optax.Params, decay: chex.Numeric, *, order: Sequence[Layer]) -> Factors:
    """Smaller learning rates for lower layers: rules for `transforms.scale_by_rules`.

        factor = decay^(layers - 1 - layer),    layer = 0, ..., layers - 1 as in `order`

    Args:
        params: a tree with the parameters' paths, as arrays or shapes.
        decay: a number in (0, 1].
        order: patterns from the first layer to the last. One with a `*` stands for a layer for each
            text that the `*` takes, in natural order (`block_2` before `block_10`), but for those
            that are named without one. Several patterns in a tuple are one layer.

    Raises:
        ValueError: a parameter is outside `order`, a pattern matches none, or a layer decides
            about none, since the layers before it have all that it names.

    Source:
        Bao et al., BEiT: BERT pre-training of image transformers, 2021, as in timm's
        `param_groups_layer_decay`.

    Example:
        >>> names = ("embed", "block_2", "block_10", "head")
        >>> params = {name: {"w": 1.0} for name in names}
        >>> layer_decay(params, 0.5, order=["embed/**", "block_*/**", "head/**"])
        [('embed/**', 0.125), ('block_2/**', 0.25), ('block_10/**', 0.5), ('head/**', 1.0)]
    """
    allowed = "a number in (0, 1]"
    require_number("layer_decay", "decay", decay, allowed, lambda x: (x > 0) & (x <= 1))
    layers = _layers("layer_decay", params, order)
    return _by_layer(layers, [decay ** (len(layers) - 1 - n) for n in range(len(layers))])


def spread(
    params: optax.Params, low: chex.Numeric, high: chex.Numeric, *, order: Sequence[Layer]
) -> Factors:
    """Factors from `low` at the first layer to `high` at the last, in equal ratios.

        factor = low (high / low)^(layer / (layers - 1))

    It is fastai's `slice(low, high)`; a single layer gets `high`.

    Args:
        params: a tree with the parameters' paths, as arrays or shapes.
        low: a positive number.
        high: a positive number.
        order: as in `layer_decay`.

    Source:
        Howard and Ruder, Universal language model fine-tuning for text classification, 2018,
        section 3.2.

    Example:
        >>> params = {"embed": 1.0, "body": 1.0, "head": 1.0}
        >>> spread(params, 0.01, 1.0, order=["embed", "body", "head"])
        [('embed', 0.01), ('body', 0.1), ('head', 1.0)]
    """
    for name, value in (("low", low), ("high", high)):
        require_number("spread", name, value, "a positive number", lambda x: x > 0)
    layers = _layers("spread", params, order)
    last = max(len(layers) - 1, 1)
    ends = {0: low, len(layers) - 1: high}  # exactly
    return _by_layer(
        layers, [ends.get(n, low * (high / low) ** (n / last)) for n in range(len(layers))]
    )


def _by_layer(layers: list[tuple[str, ...]], values: list[chex.Numeric]) -> Factors:
    pairs = [(p, value) for layer, value in zip(layers, values, strict=True) for p in layer]
    return Factors(tuple(p for p, _ in pairs), factors=tuple(value for _, value in pairs))


def _layers(owner: str, params: optax.Params, order: Sequence[Layer]) -> list[tuple[str, ...]]:
    """The patterns of each layer, a `*` in one expanded; every parameter is in one of them."""
    listed = isinstance(order, list | tuple) and len(order) > 0
    listed = listed and all(isinstance(x, str | tuple | list) and len(x) > 0 for x in order)
    allowed = "a list of patterns, or of tuples of them, from the first layer to the last"
    require(listed, owner, "order", order, allowed)
    paths = Parameters(params).paths
    written = [(layer,) if isinstance(layer, str) else tuple(layer) for layer in order]
    for pattern in itertools.chain.from_iterable(written):
        require_alive(owner, pattern, paths)
    layers = _written_out(written, paths)
    if paths:
        _require_each_owned(owner, order, layers, paths)
    return layers


def _require_each_owned(
    owner: str,
    order: Sequence[Layer],
    layers: Sequence[tuple[str, ...]],
    paths: Sequence[str],
) -> None:
    """Refuses a parameter in no layer, and a layer that decides about no parameter."""
    owned = set()
    for path in paths:
        index = next((n for n, layer in enumerate(layers) if _inside(path, [layer])), None)
        allowed = f"such that {path!r} is in one of its layers"
        require(index is not None, owner, "order", order, allowed)
        owned.add(index)
    for index, layer in enumerate(layers):
        # It would count as a layer all the same, and move the rates of those before it.
        allowed = f"such that {' or '.join(layer)!r} has a parameter that no other layer has"
        require(index in owned, owner, "order", order, allowed)


def _written_out(written: Sequence[tuple[str, ...]], paths: Sequence[str]) -> list[tuple[str, ...]]:
    """The layers, with those of one starred pattern as one layer for each text of the star."""
    # What is named without a star is a layer of its own, though a star elsewhere matches it too:
    # `["embed", "*", "head"]` has the head last, not among the blocks.
    starred = [len(layer) == 1 and bool(_starred(layer[0])) for layer in written]
    named = [layer for layer, star in zip(written, starred, strict=True) if not star]
    free = [path for path in paths if not _inside(path, named)]
    layers: list[tuple[str, ...]] = []
    for layer, star in zip(written, starred, strict=True):
        layers += [(one,) for one in _expanded(layer[0], free)] if star else [layer]
    return layers


def _inside(path: str, layers: Sequence[tuple[str, ...]]) -> bool:
    return any(matcher(pattern)(path) for layer in layers for pattern in layer)


def _starred(pattern: str) -> list[int]:
    """Where the names of a pattern have a `*` that stands for one text."""
    names = [] if pattern.startswith("re:") else pattern.split("/")
    return [n for n, name in enumerate(names) if "*" in name.replace("**", "")]


def _expanded(pattern: str, paths: Sequence[str]) -> list[str]:
    """A pattern for each layer that `pattern` stands for, its names to the last `*` written out."""
    names, last = pattern.split("/"), _starred(pattern)[-1] + 1
    head, found = "/".join(names[:last]), set()
    for path in filter(matcher(pattern), paths):
        parts = path.split("/")
        prefixes = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        found.add(next(filter(matcher(head), prefixes)))
    # A name that holds a star itself is meant as it is; block_10 comes after block_9.
    escaped = (re.sub(r"^r(?=e:)|[*?\[]", r"[\g<0>]", one) for one in sorted(found, key=_natural))
    return ["/".join([prefix, *names[last:]]) for prefix in escaped] or [pattern]


def _natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts the numbers in a text by their size, 1 and 01 by their texts."""
    parts = re.split(r"(\d+)", text)
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in parts], text
