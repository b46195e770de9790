"""Training: a state of arrays, a jitted step for Linen, NNX or functions, data, and the loop."""

from jax_lrreg.training.averaging import averaged as averaged
from jax_lrreg.training.averaging import refresh_statistics as refresh_statistics
from jax_lrreg.training.chunks import Chunk as Chunk
from jax_lrreg.training.data import ArrayData as ArrayData
from jax_lrreg.training.data import Stream as Stream
from jax_lrreg.training.evaluate import make_eval as make_eval
from jax_lrreg.training.history import compare as compare
from jax_lrreg.training.loggers import log_csv as log_csv
from jax_lrreg.training.loggers import log_jsonl as log_jsonl
from jax_lrreg.training.loggers import log_tensorboard as log_tensorboard
from jax_lrreg.training.loop import fit as fit
from jax_lrreg.training.loop import steps as steps
from jax_lrreg.training.precision import mixed_precision as mixed_precision
from jax_lrreg.training.scan import scan as scan
from jax_lrreg.training.spikes import Spike as Spike
from jax_lrreg.training.state import State as State
from jax_lrreg.training.state import init as init
from jax_lrreg.training.state import merge as merge
from jax_lrreg.training.state import thaw as thaw
from jax_lrreg.training.step import Step as Step
from jax_lrreg.training.step import make_step as make_step
from jax_lrreg.training.stop import Best as Best
from jax_lrreg.training.stop import Deadline as Deadline
from jax_lrreg.training.stop import Patience as Patience
