"""Optax gradient transformations made of penalties, schedules and controllers."""

from jax_lrreg.transforms.controller import HypergradientDescentState as HypergradientDescentState
from jax_lrreg.transforms.controller import MeanValueState as MeanValueState
from jax_lrreg.transforms.controller import ScaleByControllerState as ScaleByControllerState
from jax_lrreg.transforms.controller import hypergradient_descent as hypergradient_descent
from jax_lrreg.transforms.controller import mean_value as mean_value
from jax_lrreg.transforms.controller import scale_by_controller as scale_by_controller
from jax_lrreg.transforms.learning_rate import scale_by_learning_rate as scale_by_learning_rate
from jax_lrreg.transforms.master import MasterWeightsState as MasterWeightsState
from jax_lrreg.transforms.master import master_weights as master_weights
from jax_lrreg.transforms.metric import Metric as Metric
from jax_lrreg.transforms.penalty import AddPenaltyState as AddPenaltyState
from jax_lrreg.transforms.penalty import add_cautious_penalty as add_cautious_penalty
from jax_lrreg.transforms.penalty import add_corrected_penalty as add_corrected_penalty
from jax_lrreg.transforms.penalty import add_independent_penalty as add_independent_penalty
from jax_lrreg.transforms.penalty import add_penalty as add_penalty
from jax_lrreg.transforms.penalty import add_penalty_and_clip as add_penalty_and_clip
from jax_lrreg.transforms.proximal import ProximalState as ProximalState
from jax_lrreg.transforms.proximal import proximal as proximal
from jax_lrreg.transforms.rules import ScaleByRulesState as ScaleByRulesState
from jax_lrreg.transforms.rules import scale_by_rules as scale_by_rules
from jax_lrreg.transforms.scheduled import ScheduledState as ScheduledState
from jax_lrreg.transforms.scheduled import scheduled as scheduled
