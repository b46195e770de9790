"""Penalties: functions of the parameters to keep small, with their gradient and their prox.

Entry by entry: L1, L2, ElasticNet, Huber, NonNegativeL1, NonNegativeElasticNet; not convex: L0, Lq,
MCP, SCAD, LogSum.
Towards given parameters: L2SP, L1SP, EWC with `fisher`.
Groups (rows, columns, filters): GroupLasso, SizedGroupLasso, SparseGroupLasso, LInf.
Matrices and neighbours: Orthogonal, NuclearNorm, SpectralNorm, TotalVariation.
Constraints: NonNegative, Box, MaxNorm, UnitNorm, Simplex, L1Ball.
Not of parameters: activity_penalty, gradient_penalty, jacobian_penalty.

Sharded parameters need a mesh with Auto axes, as `jax.make_mesh(..., axis_types=(AxisType.Auto,))`
makes it: on Explicit axes JAX refuses the matrix products and reductions of some penalties with a
ShardingTypeError.
"""

from jax_lrreg.penalties.activity import activity_penalty as activity_penalty
from jax_lrreg.penalties.activity import gradient_penalty as gradient_penalty
from jax_lrreg.penalties.activity import jacobian_penalty as jacobian_penalty
from jax_lrreg.penalties.activity import points_between as points_between
from jax_lrreg.penalties.algebra import Scaled as Scaled
from jax_lrreg.penalties.algebra import Selected as Selected
from jax_lrreg.penalties.algebra import Sum as Sum
from jax_lrreg.penalties.base import ArrayPenalty as ArrayPenalty
from jax_lrreg.penalties.base import Penalty as Penalty
from jax_lrreg.penalties.constraints import Box as Box
from jax_lrreg.penalties.constraints import Constraint as Constraint
from jax_lrreg.penalties.constraints import L1Ball as L1Ball
from jax_lrreg.penalties.constraints import MaxNorm as MaxNorm
from jax_lrreg.penalties.constraints import NonNegative as NonNegative
from jax_lrreg.penalties.constraints import Simplex as Simplex
from jax_lrreg.penalties.constraints import UnitNorm as UnitNorm
from jax_lrreg.penalties.grouped import GroupLasso as GroupLasso
from jax_lrreg.penalties.grouped import LInf as LInf
from jax_lrreg.penalties.grouped import SizedGroupLasso as SizedGroupLasso
from jax_lrreg.penalties.grouped import SparseGroupLasso as SparseGroupLasso
from jax_lrreg.penalties.nonconvex import L0 as L0
from jax_lrreg.penalties.nonconvex import MCP as MCP
from jax_lrreg.penalties.nonconvex import SCAD as SCAD
from jax_lrreg.penalties.nonconvex import LogSum as LogSum
from jax_lrreg.penalties.nonconvex import Lq as Lq
from jax_lrreg.penalties.reference import EWC as EWC
from jax_lrreg.penalties.reference import L1SP as L1SP
from jax_lrreg.penalties.reference import L2SP as L2SP
from jax_lrreg.penalties.reference import fisher as fisher
from jax_lrreg.penalties.separable import L1 as L1
from jax_lrreg.penalties.separable import L2 as L2
from jax_lrreg.penalties.separable import ElasticNet as ElasticNet
from jax_lrreg.penalties.separable import Huber as Huber
from jax_lrreg.penalties.separable import NonNegativeElasticNet as NonNegativeElasticNet
from jax_lrreg.penalties.separable import NonNegativeL1 as NonNegativeL1
from jax_lrreg.penalties.spectral import NuclearNorm as NuclearNorm
from jax_lrreg.penalties.spectral import Orthogonal as Orthogonal
from jax_lrreg.penalties.spectral import SpectralNorm as SpectralNorm
from jax_lrreg.penalties.spectral import TotalVariation as TotalVariation
