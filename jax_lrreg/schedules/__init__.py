"""Learning-rate schedules: pure functions `step -> value` that are data.

Shapes are classes, their algebra is methods and operators: `0.5 * Cosine(1e-3, steps=10_000).warmup(500)`.
"""

from jax_lrreg.schedules.base import Clip as Clip
from jax_lrreg.schedules.base import Constant as Constant
from jax_lrreg.schedules.base import Function as Function
from jax_lrreg.schedules.base import InUnits as InUnits
from jax_lrreg.schedules.base import Joined as Joined
from jax_lrreg.schedules.base import Product as Product
from jax_lrreg.schedules.base import Schedule as Schedule
from jax_lrreg.schedules.base import Sum as Sum
from jax_lrreg.schedules.base import Warmup as Warmup
from jax_lrreg.schedules.base import join as join
from jax_lrreg.schedules.decays import Cosine as Cosine
from jax_lrreg.schedules.decays import Exponential as Exponential
from jax_lrreg.schedules.decays import Linear as Linear
from jax_lrreg.schedules.decays import Polynomial as Polynomial
from jax_lrreg.schedules.decays import Step as Step
