"""What is no array, as strict JSON that reads back exactly."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

Json = Any  # None, bool, int, float, str, and lists and dicts by names of them


def dumps(value: Json) -> str:
    """Text; numbers that are not finite and bytes, which JSON does not have, are marked."""
    return json.dumps(_plain(value), allow_nan=False, indent=1)


def load(path: Path) -> Json:
    """What `dumps` wrote."""
    return json.loads(path.read_text(encoding="utf-8"), object_hook=_marked)


def _plain(value: object) -> Json:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, dict):
        return {_name(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, str | int | None):
        return value
    raise TypeError(f"checkpoints: JSON has no {type(value).__name__}, got {value!r:.200}")


def _name(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"checkpoints: a name in JSON must be a string, got {key!r:.200}")
    return key


def _marked(found: dict[str, Json]) -> Json:
    if found.keys() == {"$bytes"}:
        return base64.b64decode(found["$bytes"])
    return float(found["$float"]) if found.keys() == {"$float"} else found
