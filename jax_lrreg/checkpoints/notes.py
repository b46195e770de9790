"""What is no array, as strict JSON that reads back exactly."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np


def dumps(value: Any) -> str:
    """Text; numbers that are not finite and bytes, which JSON does not have, are marked."""
    return json.dumps(_plain(value), allow_nan=False, indent=1)


def load(path: Path) -> Any:
    """What `dumps` wrote."""
    return json.loads(path.read_text(encoding="utf-8"), object_hook=_marked)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, dict):
        return {_name(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"checkpoints: JSON has no {type(value).__name__}, got {value!r:.200}")


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"checkpoints: a name in JSON must be a string, got {key!r:.200}")
    return key


def _marked(found: dict[str, Any]) -> Any:
    if found.keys() == {"$bytes"}:
        return base64.b64decode(found["$bytes"])
    return float(found["$float"]) if found.keys() == {"$float"} else found
