"""Finding a learning rate: a range test along one run, and a test of many rates side by side."""

from jax_lrreg.finder.parallel import parallel_test as parallel_test
from jax_lrreg.finder.rising import range_test as range_test
from jax_lrreg.finder.suggestions import Found as Found
