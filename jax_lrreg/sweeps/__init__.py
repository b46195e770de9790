"""Many runs as one program: grids, regularization paths, and gradients of hyperparameters."""

from jax_lrreg.sweeps.folds import CrossValidation as CrossValidation
from jax_lrreg.sweeps.folds import cross_validate as cross_validate
from jax_lrreg.sweeps.grid import Grid as Grid
from jax_lrreg.sweeps.grid import grid as grid
from jax_lrreg.sweeps.grid import random as random
from jax_lrreg.sweeps.grid import zipped as zipped
from jax_lrreg.sweeps.halving import halving as halving
from jax_lrreg.sweeps.hypergradient import Tuned as Tuned
from jax_lrreg.sweeps.hypergradient import hypergradient as hypergradient
from jax_lrreg.sweeps.hypergradient import tune as tune
from jax_lrreg.sweeps.path import Path as Path
from jax_lrreg.sweeps.path import path as path
from jax_lrreg.sweeps.result import Best as Best
from jax_lrreg.sweeps.result import Result as Result
from jax_lrreg.sweeps.result import Table as Table
from jax_lrreg.sweeps.run import run as run
from jax_lrreg.sweeps.solver import solve as solve
