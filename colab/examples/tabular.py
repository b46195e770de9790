"""Tables: the lasso path on breast cancer, coefficient for coefficient that of scikit-learn.

The loss is the squared error, as scikit-learn's `lasso_path` has it. Each solution is at most the
certificate away from optimal, so the two agree on what is exactly 0 as well. In the end logistic
regression on the same columns, whose strength is chosen by cross-validation.
"""

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import lasso_path

from jax_lrreg import penalties, sweeps

bunch = load_breast_cancer()
x = ((bunch.data - bunch.data.mean(0)) / bunch.data.std(0)).astype(np.float32)
y = bunch.target.astype(np.float32)
params = {"w": jnp.zeros(x.shape[1]), "b": jnp.zeros(())}
lasso = penalties.L1(1.0).on("w")  # the intercept is free


def squares(params):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) / 2


def logistic(params, batch):
    x, y = batch
    margin = (2 * y - 1) * (x @ params["w"] + params["b"])
    return jnp.mean(jnp.logaddexp(0, -margin))


path = sweeps.path(squares, params, lasso, strengths=30, tolerance=1e-7)
centred = x.astype(float), (y - y.mean()).astype(float)
_, theirs, _ = lasso_path(*centred, alphas=path.strengths.astype(float), tol=1e-12, max_iter=10**6)
ours = np.asarray(path.params["w"])
difference = np.abs(ours - theirs.T).max(axis=1)

print(f"{'strength':>10} {'not zero':>9} {'scikit-learn':>13} {'largest difference':>19}")
for i in range(0, len(ours), 5):
    counts = np.count_nonzero(ours[i]), np.count_nonzero(theirs[:, i])
    print(f"{path.strengths[i]:10.4g} {counts[0]:9} {counts[1]:13} {difference[i]:19.1e}")
assert difference.max() < 1e-3
assert np.mean((ours != 0) == (theirs.T != 0)) > 0.99

order = np.random.default_rng(0).permutation(len(y))
train, test = order[:400], order[400:]
cv = sweeps.cross_validate(logistic, params, lasso, (x[train], y[train]), folds=5, strengths=20)
chosen = cv.path.at(cv.one_standard_error)
accuracy = np.mean((x[test] @ chosen["w"] + chosen["b"] > 0) == (y[test] > 0.5))
left = int(np.sum(chosen["w"] != 0))
print(f"logistic: {left} of {len(chosen['w'])} columns, accuracy {accuracy:.3f} on unseen patients")
assert left < 20
assert accuracy > 0.94
