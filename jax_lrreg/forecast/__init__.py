"""The loss of a schedule before it is run: a law fitted to short runs, and bounds of theory.

`fit` finds the numbers of a law in the curves of two or three runs; the law then tells the loss
of any other schedule, and `law.best` the best one of a form. `bound`, `peak_for` and `refined` are
what theory says without any run, or with the gradient norms of one.
"""

from jax_lrreg.forecast.best import Plan as Plan
from jax_lrreg.forecast.bound import bound as bound
from jax_lrreg.forecast.bound import peak_for as peak_for
from jax_lrreg.forecast.evidence import Evidence as Evidence
from jax_lrreg.forecast.fit import Prior as Prior
from jax_lrreg.forecast.fit import fit as fit
from jax_lrreg.forecast.law import MultiPower as MultiPower
from jax_lrreg.forecast.refined import refined as refined
