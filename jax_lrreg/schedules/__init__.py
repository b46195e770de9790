"""Learning-rate schedules: pure functions `step -> value` that are data.

Shapes are classes, their algebra is methods and operators, recipes are functions:

    0.5 * Cosine(1e-3, steps=10_000).warmup(500)
    warmup_cosine(5e-4, warmup_steps=500, total_steps=10_500)

docs/schedules.md has a picture of each, docs/names.md the names that they have in other libraries;
`jax_lrreg.interop` converts the live objects exactly.
"""

from jax_lrreg.controllers.base import Averaged as Averaged
from jax_lrreg.controllers.base import Controller as Controller
from jax_lrreg.controllers.base import Smoothed as Smoothed
from jax_lrreg.controllers.greedy import Greedy as Greedy
from jax_lrreg.controllers.hypergradient import HypergradientDescent as HypergradientDescent
from jax_lrreg.controllers.loss_decay import LossDecay as LossDecay
from jax_lrreg.controllers.plateau import ReduceOnPlateau as ReduceOnPlateau
from jax_lrreg.schedules.algebra import Clip as Clip
from jax_lrreg.schedules.algebra import Product as Product
from jax_lrreg.schedules.algebra import Sum as Sum
from jax_lrreg.schedules.base import Constant as Constant
from jax_lrreg.schedules.base import Function as Function
from jax_lrreg.schedules.base import Schedule as Schedule
from jax_lrreg.schedules.cycles import CosineRestarts as CosineRestarts
from jax_lrreg.schedules.cycles import Cyclic as Cyclic
from jax_lrreg.schedules.cycles import PolynomialCycle as PolynomialCycle
from jax_lrreg.schedules.decays import Cosine as Cosine
from jax_lrreg.schedules.decays import Linear as Linear
from jax_lrreg.schedules.decays import Polynomial as Polynomial
from jax_lrreg.schedules.decays import Rex as Rex
from jax_lrreg.schedules.decays import Tanh as Tanh
from jax_lrreg.schedules.ramps import Cooldown as Cooldown
from jax_lrreg.schedules.ramps import Warmup as Warmup
from jax_lrreg.schedules.recipes import cosine_then_linear as cosine_then_linear
from jax_lrreg.schedules.recipes import flat_cosine as flat_cosine
from jax_lrreg.schedules.recipes import noam as noam
from jax_lrreg.schedules.recipes import one_cycle as one_cycle
from jax_lrreg.schedules.recipes import one_cycle_three_phases as one_cycle_three_phases
from jax_lrreg.schedules.recipes import slanted_triangular as slanted_triangular
from jax_lrreg.schedules.recipes import tri_stage as tri_stage
from jax_lrreg.schedules.recipes import warmup_cosine as warmup_cosine
from jax_lrreg.schedules.recipes import warmup_linear as warmup_linear
from jax_lrreg.schedules.recipes import warmup_stable_decay as warmup_stable_decay
from jax_lrreg.schedules.recipes import warmup_stable_decay_periods as warmup_stable_decay_periods
from jax_lrreg.schedules.stairs import InverseTimeStep as InverseTimeStep
from jax_lrreg.schedules.stairs import MultiStep as MultiStep
from jax_lrreg.schedules.stairs import PiecewiseConstant as PiecewiseConstant
from jax_lrreg.schedules.stairs import PiecewiseCosine as PiecewiseCosine
from jax_lrreg.schedules.stairs import PiecewiseLinear as PiecewiseLinear
from jax_lrreg.schedules.stairs import Step as Step
from jax_lrreg.schedules.tails import Exponential as Exponential
from jax_lrreg.schedules.tails import HalfLife as HalfLife
from jax_lrreg.schedules.tails import InverseSqrt as InverseSqrt
from jax_lrreg.schedules.tails import InverseTime as InverseTime
from jax_lrreg.schedules.tails import PowerLaw as PowerLaw
from jax_lrreg.schedules.timeline import Extended as Extended
from jax_lrreg.schedules.timeline import InUnits as InUnits
from jax_lrreg.schedules.timeline import Joined as Joined
from jax_lrreg.schedules.timeline import Repeated as Repeated
from jax_lrreg.schedules.timeline import Shifted as Shifted
from jax_lrreg.schedules.timeline import Stretched as Stretched
from jax_lrreg.schedules.timeline import join as join
