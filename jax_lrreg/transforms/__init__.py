"""Optax gradient transformations made of penalties, schedules and controllers."""

from jax_lrreg.transforms.penalty import AddPenaltyState as AddPenaltyState
from jax_lrreg.transforms.penalty import add_penalty as add_penalty
