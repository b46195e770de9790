"""`python -m jax_lrreg`: the command line."""

import sys

from jax_lrreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
