"""Many runs as one program: grids of hyperparameters, and what is found on them."""

from jax_lrreg.sweeps.grid import Grid as Grid
from jax_lrreg.sweeps.grid import grid as grid
from jax_lrreg.sweeps.grid import random as random
from jax_lrreg.sweeps.grid import zipped as zipped
from jax_lrreg.sweeps.result import Best as Best
from jax_lrreg.sweeps.result import Result as Result
from jax_lrreg.sweeps.result import Table as Table
from jax_lrreg.sweeps.run import run as run
