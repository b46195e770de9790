"""Which parameters are meant: patterns, rules, predicates, and a report of what they chose.

A parameter's path is its names joined by `/`, as in `encoder/layer_0/kernel`, the same for Linen
variables, NNX states and modules, and plain trees. A selection gives each path a multiplier;
0 leaves the parameter out.
"""

from jax_lrreg._arrays import leaves as leaves
from jax_lrreg.select.layers import layer_decay as layer_decay
from jax_lrreg.select.layers import spread as spread
from jax_lrreg.select.report import Report as Report
from jax_lrreg.select.report import report as report
from jax_lrreg.select.rules import Factor as Factor
from jax_lrreg.select.rules import FactorFunction as FactorFunction
from jax_lrreg.select.rules import Factors as Factors
from jax_lrreg.select.rules import Predicate as Predicate
from jax_lrreg.select.rules import Rules as Rules
from jax_lrreg.select.rules import RulesLike as RulesLike
from jax_lrreg.select.rules import Selection as Selection
from jax_lrreg.select.rules import factors as factors
from jax_lrreg.select.rules import selection as selection
