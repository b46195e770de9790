# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Regularization paths
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/regularization_path.ipynb)
#
# The solutions at all strengths of a penalty: the lasso beside scikit-learn's, the strength that
# cross-validation chooses, other penalties by the same call, and when any of this helps.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("jax_lrreg") is None:  # from the checkout around, else from the index
    places = (Path.cwd(), *Path.cwd().parents)
    source = next((str(p) for p in places if (p / "jax_lrreg/__init__.py").exists()), "jax_lrreg")
    # JAX, where it is there already for the runtime's own accelerator, is left as it is.
    command = [sys.executable, "-m", "pip", "install", "-q", f"{source}[demo]"]
    if subprocess.run(command, capture_output=True).returncode:
        sys.exit(f"pip found no jax_lrreg: run this in a checkout, or try {' '.join(command[1:])}")

# %% [markdown]
# ## The lasso
#
# scikit-learn's diabetes data: 442 patients, 10 measurements, and how the disease went on. The
# coefficients enter one after another as the strength falls.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV, lasso_path

from jax_lrreg import penalties, plots, sweeps

plt.rcParams.update(plots.STYLE)  # one style for all pictures of this page

bunch = load_diabetes()
x = ((bunch.data - bunch.data.mean(0)) / bunch.data.std(0)).astype(np.float32)
y = ((bunch.target - bunch.target.mean()) / bunch.target.std()).astype(np.float32)


def squares(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) / 2


params = {"w": jnp.zeros(10), "b": jnp.zeros(())}
lasso = penalties.L1(1.0).on("w")  # the intercept is free
path = sweeps.path(lambda params: squares(params, (x, y)), params, lasso)
print(path)
ax = plots.path(path.strengths, path.params["w"], names=[n.upper() for n in bunch.feature_names])
_ = ax.set_title("ten measurements, one after another")

# %% [markdown]
# Each solution carries its certificate, the distance from solving the problem, so it is known how
# near it is. scikit-learn's coordinate descent comes to the same:

# %%
_, theirs, _ = lasso_path(x.astype(float), y.astype(float), alphas=path.strengths, tol=1e-10)
difference = np.abs(path.params["w"] - theirs.T).max()
print(f"largest certificate {path.certificate.max():.1e}, largest difference {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# ## Which strength?
#
# That of the least loss on what is left out, or the strongest one within a standard error of it,
# which takes fewer measurements. The folds are scikit-learn's, and so is the choice.

# %%
cv = sweeps.cross_validate(squares, params, lasso, (x, y), folds=5, strengths=50)
print(cv)
_ = plots.path(cv)
search = LassoCV(cv=5, alphas=cv.strengths, tol=1e-8).fit(x.astype(float), y.astype(float))
assert np.isclose(search.alpha_, cv.best)

# %%
_, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.errorbar(cv.strengths, 2 * cv.mean, 2 * cv.error, color=plots.COLORS[0], elinewidth=0.7)
for strength, name, dashes in ((cv.best, "best", "-"), (cv.one_standard_error, "1 s.e.", "--")):
    left = int(np.sum(cv.path.at(strength)["w"] != 0))
    ax.axvline(strength, color=plots.COLORS[1], linestyle=dashes, label=f"{name}: {left} of 10")
ax.set(xscale="log", xlabel="strength", ylabel="squared error on what is left out")
ax.set_title(f"{left} of 10 measurements come within a standard error of the best")
_ = ax.legend()

# %% [markdown]
# ## When it helps
#
# Where there are more columns than rows. 60 rows of 200 columns, of which 10 matter: without a
# penalty the training data is fitted exactly, and unseen data badly. The path is judged on 1000
# unseen rows. L1 shrinks what it keeps; MCP, which is flat for large coefficients, does not.

# %%
random = np.random.default_rng(0)
truth = np.zeros(200, np.float32)
truth[:10] = random.normal(size=10) * 2


def drawn(rows):
    x = random.normal(size=(rows, 200)).astype(np.float32)
    return x, x @ truth + random.normal(size=rows).astype(np.float32)


seen, unseen = drawn(60), drawn(1000)
begin = {"w": jnp.zeros(200), "b": jnp.zeros(())}
chosen = {
    "L1": penalties.L1(1.0),
    "L1 and L2": penalties.ElasticNet(0.5, l2=0.5),
    "MCP": penalties.MCP(1.0, gamma=3.0),
}
paths = {
    name: sweeps.path(lambda params: squares(params, seen), begin, penalty.on("w"), strengths=40)
    for name, penalty in chosen.items()
}
none = np.linalg.lstsq(np.c_[seen[0], np.ones(60)], seen[1], rcond=None)[0]
without = np.mean((np.c_[unseen[0], np.ones(1000)] @ none - unseen[1]) ** 2)

_, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (name, found), color in zip(paths.items(), plots.COLORS, strict=False):
    errors = 2 * jax.vmap(lambda params: squares(params, unseen))(found.params)
    best = int(np.argmin(errors))
    left = int(np.sum(found.params["w"][best] != 0))
    print(f"{name:10} least error {errors[best]:6.2f}, with {left} of 200 coefficients")
    ax.plot(found.strengths / found.strengths[0], errors, color=color, label=name)
    assert errors[best] < without / 2
print(f"{'no penalty':10} {without:18.2f}, with 200")
ax.axhline(without, color="0.5", linestyle=":", label="no penalty")
ax.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)  # the noise
ax.set(xscale="log", yscale="log", xlabel="strength, as a part of the least that leaves nothing")
ax.set_ylabel("squared error, unseen rows")
ax.set_title("between nothing and everything")
_ = ax.legend()

# %% [markdown]
# ## Whole groups
#
# A group lasso takes columns in or leaves them out together: here the measurements of blood as one,
# the others each alone.

# %%
groups = penalties.GroupLasso(1.0, groups=[0, 1, 2, 3, 4, 4, 4, 4, 4, 4]).on("w")
grouped = sweeps.path(lambda params: squares(params, (x, y)), params, groups)
ax = plots.path(
    grouped.strengths, grouped.params["w"], names=[n.upper() for n in bunch.feature_names]
)
ax.set_title("S1 to S6 enter together")
inside = np.asarray(grouped.params["w"])[:, 4:] != 0
assert (inside.all(1) | ~inside.any(1)).all()
