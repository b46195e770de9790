"""Checkpoints: a run that is killed goes on bit for bit, and may be taken elsewhere.

`training.fit(..., checkpoint="run/")` writes them and goes on from them. A step is a folder of
arrays by Orbax and of JSON, which counts only once a manifest of SHA-256 sums stands in it. Nothing
is unpickled or evaluated, so a damaged or hostile checkpoint can be refused, not run.
"""

from jax_lrreg.checkpoints.branch import branch as branch
from jax_lrreg.checkpoints.folder import Folder as Folder
from jax_lrreg.checkpoints.folder import restore as restore
from jax_lrreg.checkpoints.folder import steps as steps
from jax_lrreg.checkpoints.manifest import Damaged as Damaged
