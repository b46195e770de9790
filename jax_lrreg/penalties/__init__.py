"""Penalties: functions of the parameters to keep small, with their gradient and their prox."""

from jax_lrreg.penalties.base import Penalty as Penalty
from jax_lrreg.penalties.base import Scaled as Scaled
from jax_lrreg.penalties.base import Selected as Selected
from jax_lrreg.penalties.base import Sum as Sum
from jax_lrreg.penalties.separable import L1 as L1
from jax_lrreg.penalties.separable import L2 as L2
from jax_lrreg.penalties.separable import ElasticNet as ElasticNet
