"""Switches for every test."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", os.environ.get("JAX_LRREG_PLATFORM", ""))

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("ci")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
