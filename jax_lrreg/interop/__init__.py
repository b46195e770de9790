"""Live objects of PyTorch, transformers, timm, Keras, Optax and scikit-learn as ours.

Each takes the library's own object and returns a schedule of ours that gives the same value at
every update, off-by-ones and rises after the end included. Our step is the index of the update,
their own count: what PyTorch calls `last_epoch`, Keras `iterations`, Optax `count`. What cannot be
equal is refused by name.

Nothing of these libraries is imported: their objects are known by the module and name of their
type. A peer's own rounding (float32 in Keras and Optax, recursion in PyTorch, a logarithm that
misses an exact restart in timm with a `cycle_mul`) is not copied.

`from_keras` takes regularizers and constraints as well; `from_sklearn` and `to_sklearn`,
`from_weight_decay` and `to_weight_decay` translate the strengths of penalties.
"""

from jax_lrreg.interop.keras import from_keras as from_keras
from jax_lrreg.interop.optax import from_optax as from_optax
from jax_lrreg.interop.searches import Search as Search
from jax_lrreg.interop.strengths import from_sklearn as from_sklearn
from jax_lrreg.interop.strengths import from_weight_decay as from_weight_decay
from jax_lrreg.interop.strengths import to_sklearn as to_sklearn
from jax_lrreg.interop.strengths import to_weight_decay as to_weight_decay
from jax_lrreg.interop.timm import from_timm as from_timm
from jax_lrreg.interop.torch import from_torch as from_torch
