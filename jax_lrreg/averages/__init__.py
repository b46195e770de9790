"""Averages of the parameters along a run: `(state, params) -> state`, `state -> params`.

An average of the weights is often better than the weights: it is near to what a lower learning rate
would have come to, at no lower rate. `EMA` forgets by degrees, `Uniform` counts all alike (SWA),
`Latest` the last few (LAWA), and `Cooldown` weighs them as a cooldown does, and so stands for one
at any step of a run at a constant rate.
"""

from jax_lrreg.averages.base import Average as Average
from jax_lrreg.averages.cooldown import Cooldown as Cooldown
from jax_lrreg.averages.cooldown import merge as merge
from jax_lrreg.averages.cooldown import weights as weights
from jax_lrreg.averages.exponential import EMA as EMA
from jax_lrreg.averages.exponential import RisingDecay as RisingDecay
from jax_lrreg.averages.windows import Latest as Latest
from jax_lrreg.averages.windows import Uniform as Uniform
