"""Controllers: multipliers of the learning rate that the loss, a metric or the gradient drives.

`ReduceOnPlateau`, `Greedy` and `LossDecay` hear a metric, `Averaged` and `Smoothed` steady what
they hear; `HypergradientDescent` hears the gradient. Users find them in `schedules` too, beside
what they multiply.
"""

from jax_lrreg.controllers.base import Averaged as Averaged
from jax_lrreg.controllers.base import Controller as Controller
from jax_lrreg.controllers.base import Smoothed as Smoothed
from jax_lrreg.controllers.greedy import Greedy as Greedy
from jax_lrreg.controllers.hypergradient import HypergradientDescent as HypergradientDescent
from jax_lrreg.controllers.loss_decay import LossDecay as LossDecay
from jax_lrreg.controllers.plateau import ReduceOnPlateau as ReduceOnPlateau
