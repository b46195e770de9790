"""Learning-rate schedules: pure functions `step -> value` that are data.

Shapes are classes, their algebra is methods and operators, recipes are functions:

    0.5 * Cosine(1e-3, steps=10_000).warmup(500)
    warmup_cosine(5e-4, warmup_steps=500, total_steps=10_500)

Their name, and ours. Where a step is counted otherwise, `jax_lrreg.interop` converts the live
object exactly.

    Optax
        constant_schedule, linear_schedule, polynomial_schedule       Constant, Linear, Polynomial
        cosine_decay_schedule, exponential_decay(staircase=)          Cosine, Exponential, Step
        piecewise_constant_schedule, piecewise_interpolate_schedule   MultiStep or PiecewiseConstant,
                                                                      PiecewiseLinear,
                                                                      PiecewiseCosine
        warmup_constant_schedule, warmup_exponential_decay_schedule   Constant(v).warmup(n), Exponential(...).warmup(n)
        warmup_cosine_decay_schedule, sgdr_schedule                   warmup_cosine, join of warmup_cosine
        linear_onecycle_schedule, cosine_onecycle_schedule            one_cycle_three_phases(shape=)
        join_schedules                                                join
    torch.optim.lr_scheduler
        ConstantLR, LinearLR, PolynomialLR, ExponentialLR             PiecewiseConstant, Linear, Polynomial, Exponential
        StepLR, MultiStepLR, CyclicLR                                 Step, MultiStep, Cyclic
        CosineAnnealingLR, CosineAnnealingWarmRestarts                Cosine, CosineRestarts
        OneCycleLR(three_phase=)                                      one_cycle, one_cycle_three_phases
        SequentialLR, LambdaLR, MultiplicativeLR                      join, Function, `*`
    keras.optimizers.schedules
        ExponentialDecay, InverseTimeDecay, with staircase=True       Exponential, InverseTime, Step, InverseTimeStep
        PolynomialDecay, with cycle=True                              Polynomial, PolynomialCycle
        CosineDecay(warmup_steps=), CosineDecayRestarts               Cosine(...).warmup(n), CosineRestarts
        PiecewiseConstantDecay                                        PiecewiseConstant
    transformers.get_scheduler
        constant, constant_with_warmup, linear, cosine                Constant, .warmup(n), warmup_linear, warmup_cosine
        cosine_with_restarts, polynomial                              CosineRestarts, Polynomial, each with .warmup(n)
        inverse_sqrt, warmup_stable_decay                             InverseSqrt.shifted, warmup_stable_decay
        cosine_with_min_lr                                            warmup_cosine(end_value=)
    timm
        cosine, tanh, poly (k_decay=, cycle_mul=)                     Cosine or CosineRestarts, Tanh, Polynomial
        step, multistep, wsd                                          Step, MultiStep, warmup_stable_decay
        warmup_prefix=True, False                                     .warmup(n), join with .shift(-n)
    fairseq
        cosine, polynomial_decay, triangular, step, manual            CosineRestarts, Polynomial, Cyclic, Step,
                                                                      PiecewiseConstant
        inverse_sqrt, tri_stage                                       InverseSqrt.fairseq, tri_stage
    Elsewhere
        Transformer (noam), T5 and big_vision rsqrt, 1/sqrt           noam, InverseSqrt.t5, .shifted
        WSD, trapezoid, WSD-S                                         warmup_stable_decay(_periods), .cooldown
        big_vision warmup and cooldown factors                        .overlay_warmup(n), * Constant(1).cooldown(n, at=)
        HTD, REX, k-decay, SGDR, CLR, ULMFiT                          Tanh, Rex, k_decay=, CosineRestarts, Cyclic,
                                                                      slanted_triangular
        fit_flat_cos (fastai), CosWithWarmupAndLinearDecay (OLMo)     flat_cosine, cosine_then_linear
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
from jax_lrreg.schedules.recipes import (
    warmup_stable_decay_periods as warmup_stable_decay_periods,
)
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
