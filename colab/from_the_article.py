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
# # 学习率调整与正则化 | Learning rates and regularization
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/from_the_article.ipynb)
#
# 这个库起源于一篇中文文章。这里按它的章节走一遍:每个公式、每个程序都能运行。凡是文章的说法与通行的说法不同之处,都直接写明。
#
# The library began from an article in Chinese. This page follows it section by section: every
# formula and both programs run, and where the article says it otherwise than the field does, the
# page says so.

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
# 下面先造一个小的 CSV 文件:300 行,20 个特征,其中只有 3 个有用。把 `path` 和 `target` 换成您自己的文件和列名即可。
#
# First a small CSV file: 300 rows of 20 features, 3 of which matter. Put your own file and column
# into `path` and `target`, and everything below runs on it. (Numbers and a header; for dates, words
# and gaps there is `python -m jax_lrreg train --data FILE --target COLUMN`.)

# %%
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jax_lrreg import penalties, plots, schedules, sweeps, training, transforms

plt.rcParams.update(plots.STYLE)  # 所有图一个样式 | one style for all pictures
path, target = Path(tempfile.mkdtemp()) / "small.csv", "y"

random = np.random.default_rng(0)
features = random.normal(size=(300, 20))
y = 3 * np.maximum(features[:, 0], 0) - 2 * features[:, 1] + 1.5 * np.abs(features[:, 2])
y += random.normal(size=300)
header = ",".join([*(f"x{j + 1}" for j in range(20)), "y"])
np.savetxt(path, np.c_[features, y], "%.4f", ",", header=header, comments="")

# %%
with open(path) as file:
    names = file.readline().strip().split(",")
table = np.loadtxt(path, delimiter=",", skiprows=1)
at = names.index(target)
x, y = np.delete(table, at, axis=1), table[:, at]
order = np.random.default_rng(1).permutation(len(y))
test, train = (
    order[: len(y) // 5],
    order[len(y) // 5 :],
)  # 五分之一用于测试 | a fifth is for testing
x = ((x - x[train].mean(0)) / x[train].std(0)).astype(np.float32)
y = ((y - y[train].mean()) / y[train].std()).astype(np.float32)
m, n = x[train].shape
print(f"m = {m} 个训练样本 | examples for training, n = {n} 个特征 | features")

# %% [markdown]
# 文章的两个程序用同一个网络:`Dense(10, relu)` 之后是 `Dense(1)`,均方误差,Adam,0.01,100 轮,每批 32 个样本。
#
# Both programs of the article have one network, `Dense(10, relu)` and `Dense(1)`; the mean squared
# error; Adam at 0.01; 100 epochs of batches of 32.

# %%
module = nn.Sequential([nn.Dense(10), nn.relu, nn.Dense(1)])
eta0, batch_size, epochs = 0.01, 32, 100
data = training.ArrayData({"x": x[train], "y": y[train]}, batch_size, key=jax.random.key(1))
max_iter = epochs * data.steps_per_epoch


def mse(model, batch):
    return jnp.mean((model(batch["x"])[:, 0] - batch["y"]) ** 2)


held = training.ArrayData({"x": x[test], "y": y[test]}, len(test), shuffle=False)
evaluate = training.make_eval(module, lambda model, b: {"test_loss": mse(model, b)}, held)

# %% [markdown]
# ## 一、学习率调整 | Learning-rate adjustment
#
# 每一步沿梯度下降,学习率 $\eta$ 决定步长 | each step goes down the gradient, and $\eta$ says how far:
#
# $$\theta_{t+1} = \theta_t - \eta_t \nabla J(\theta_t)$$
#
# | 文章的说法 | in the article | 公式 formula | 这里 here | 通用名称 its usual name |
# |---|---|---|---|---|
# | 固定学习率 | fixed | $\eta_t = \eta_0$ | `Constant(eta0)` | 常数 constant |
# | 指数衰减 | "exponential" | $\eta_t = \eta_0 (1 - t / T)^{\alpha}$ | `Polynomial(eta0, steps=T, power=alpha)` | 多项式衰减 polynomial |
# | 步长衰减 | "step decay" | $\eta_t = \eta_0 (1 - t / s)$ | `Linear(eta0, steps=s)` | 线性衰减 linear |
#
# $T$ = max\_iter, $s$ = step, $t$ = iter.

# %%
alpha, step_size = 0.9, max_iter // 2
article = {
    "固定 fixed": schedules.Constant(eta0),
    "指数 'exponential'": schedules.Polynomial(eta0, steps=max_iter, power=alpha),
    "步长 'step decay'": schedules.Linear(eta0, steps=step_size),
}
for name, schedule in article.items():
    print(f"{name:20} {schedule}")

# %%
# 图例用英文:Matplotlib 自带字体没有汉字 | Matplotlib's own font has no Chinese
english = ("fixed", '"exponential"', '"step decay"')
ax = plots.schedule(dict(zip(english, article.values(), strict=True)), steps=max_iter)
_ = ax.set_title("the article's three schedules")

# %% [markdown]
# **坦率的说明。** 通常说的"指数衰减"是 $\eta_0 r^{t/s}$,"步长衰减"是 $\eta_0 r^{\lfloor t/s \rfloor}$,与文章的公式不同。
# 两者这里也有:
#
# **A frank note.** What is usually called exponential is $\eta_0 r^{t/s}$, and step decay is
# $\eta_0 r^{\lfloor t/s \rfloor}$. Neither is the article's formula; both are here too:

# %%
quarter = max_iter // 4 + 1
usual = {
    "usual exponential": schedules.Exponential(eta0, steps=quarter, decay_rate=0.5),
    "usual step decay": schedules.Step(eta0, steps=quarter, decay_rate=0.5),
}
ax = plots.schedule(usual, steps=max_iter)
_ = ax.set_title("what these names mean elsewhere")

# %% [markdown]
# ### 程序一 | The first program
#
# Keras 的 `model.fit(..., epochs=100, batch_size=32)` 在这里是 | what Keras calls `fit` is here:

# %%
schedule = article["指数 'exponential'"]
tx = optax.adam(schedule)
state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
step = training.make_step(module, mse, tx, learning_rate=schedule)
every = data.steps_per_epoch
options = {"log_every": every, "eval_every": every, "eval_fn": evaluate}
state, history = training.fit(step, state, data, steps=max_iter, **options)
_ = plots.history(history)

# %% [markdown]
# **坦率的说明。** 文章说这三种学习率都"根据损失值调整"。公式里没有损失值:后两种只看步数,第一种根本不变。真正看损失值的是
# `ReduceOnPlateau`:测试误差一段时间没有改善,就把学习率乘以一个因子。
#
# **A frank note.** The article says that all three are "adjusted by the loss value". There is no
# loss in the formulas: two of them look at the number of the step alone, one at nothing. What does
# look is `ReduceOnPlateau`: where a loss has not improved for a while, the rate is multiplied.

# %%
plateau = schedules.ReduceOnPlateau(factor=0.5, patience=5, threshold=0.01)
tx = optax.chain(optax.adam(eta0), transforms.scale_by_controller(plateau))
state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
step = training.make_step(module, mse, tx, learning_rate=eta0)
_, driven = training.fit(
    step, state, data, steps=max_iter, control_on="test_loss", **options
)  # 按测试误差调整 | driven by this metric
_ = plots.history({"polynomial": history, "plateau": driven})

# %% [markdown]
# ### 三种学习率相比 | The three compared
#
# 三个公式是同一个公式:$\alpha$ 为 0.9 或 1,固定的学习率则从 $\eta_0$ 降到 $\eta_0$。所以它们是一个对象的三个点,
# 每点 8 个随机种子,一起编译成一个程序。
#
# The three are one formula: $\alpha$ is 0.9 or 1, and a fixed rate falls from $\eta_0$ to $\eta_0$. So
# they are three points of one object, with 8 seeds each, compiled as one program:


# %%
def trained(hp, loss, penalty=None):
    tx = optax.adam(hp["lr"])
    state = training.init(module, tx, key=hp["key"], example=x[:1])
    step = training.make_step(module, loss, tx, penalty=penalty)
    return training.scan(step, state, data, steps=max_iter)[0].params


def errors(params):
    model = lambda inputs: module.apply({"params": params}, inputs)  # noqa: E731
    sets = {"train MSE": train, "test MSE": test}
    return {name: mse(model, {"x": x[s], "y": y[s]}) for name, s in sets.items()}


three = schedules.Polynomial(
    eta0,
    steps=jnp.array([max_iter, max_iter, step_size]),
    power=jnp.array([1, alpha, 1]),
    end_value=jnp.array([eta0, 0, 0]),
)
seeds = jax.random.split(jax.random.key(7), 8)
rates = sweeps.run(lambda hp: errors(trained(hp, mse)), sweeps.grid(lr=three, key=seeds))


def show(result, names):
    """各种子的平均值 ± 标准误差 | The mean over the seeds, and its standard error."""
    print(f"{'':12}" + "".join(f"{column:>20}" for column in result.names))
    for i, name in enumerate(names):
        rows = (np.atleast_2d(result[column])[i] for column in result.names)
        cells = (f"{row.mean():.4g} ± {row.std(ddof=1) / len(row) ** 0.5:.1g}" for row in rows)
        print(f"{name:12}" + "".join(f"{cell:>20}" for cell in cells))


show(rates, english)

# %% [markdown]
# 固定的学习率在这里学到了噪声:训练误差最小,测试误差最大。衰减的学习率停在它前面。
#
# Here the fixed rate learns the noise: its training error is the least, its test error the
# largest. The decays stop before that.

# %% [markdown]
# ## 二、正则化 | Regularization
#
# 目标函数是数据项加惩罚项 | the objective is a term of the data and a penalty:
#
# $$J_{L1}(\theta) = \frac{1}{2m} \sum_{i=1}^{m} (h_\theta(x_i) - y_i)^2
#   + \frac{\lambda}{m} \sum_{j=1}^{n} |\theta_j|$$
#
# $$J_{L2}(\theta) = \frac{1}{2m} \sum_{i=1}^{m} (h_\theta(x_i) - y_i)^2
#   + \frac{\lambda}{2m} \sum_{j=1}^{n} \theta_j^2$$
#
# - $m$ 是训练样本数,不是批的大小 | $m$ is the number of training examples, not of a batch.
# - 文章说 $n$ 是特征数:那只对线性模型成立。在网络里,求和遍历所有权重 | the article says that $n$ is
#   the number of features, which is so for a linear model; in a network the sum is over all weights.
# - 偏置不受惩罚 | biases are not penalised: `.on("**/kernel")`.

# %%
lam = 1.0
l1 = (penalties.L1(lam) / m).on("**/kernel")  # lambda/m  sum |w|
l2 = (penalties.L2(lam) / m).on("**/kernel")  # lambda/2m sum w^2: L2 有 1/2 | L2 has the 1/2


def half_mse(model, batch):  # 公式中的 1/(2m) | the 1/(2m) of the formula
    return mse(model, batch) / 2


# %% [markdown]
# **坦率的说明。**
#
# - 文章把它叫作"批量正则化"。这不是通用的术语:*批归一化* (batch normalization) 是对每一批的激活值做标准化的层,与这里的惩罚项无关。
# - Keras 没有 `L1L2Normalization` 这个层。要写的是 `Dense(10, kernel_regularizer=keras.regularizers.L1L2(l1=..., l2=...))`。
# - Keras 的 `"mse"` 没有 1/2,`L2(c)` 也没有:同样的最小值要写 `L1(2 * lam / m)` 和 `L2(lam / m)`。
#
# **Frank notes.**
#
# - The article calls this 批量正则化, "batch regularization". That is no standard term: 批归一化, *batch
#   normalization*, is a layer that standardises the activations of each batch, and no penalty.
# - Keras has no layer `L1L2Normalization`. What is meant is
#   `Dense(10, kernel_regularizer=keras.regularizers.L1L2(l1=..., l2=...))`.
# - Keras's `"mse"` is without the 1/2, and so is its `L2(c)`: the same minimum takes
#   `L1(2 * lam / m)` and `L2(lam / m)` there.

# %% [markdown]
# ### 程序二 | The second program

# %%
schedule = article["指数 'exponential'"]
tx = optax.adam(schedule)
state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
print(l1.report(state.params))
step = training.make_step(module, half_mse, tx, penalty=l1, learning_rate=schedule)
state, history = training.fit(step, state, data, steps=max_iter, **options)
_ = plots.history(history)

# %% [markdown]
# ### L1、L2 与无惩罚 | L1, L2 and none
#
# 在您自己的 CSV 上,8 个种子的平均 | on your own CSV, the mean of 8 seeds:


# %%
def with_weights(params):
    kernels = [params[layer]["kernel"] for layer in sorted(params)]
    zeros = sum((k == 0).sum() for k in kernels)
    return errors(params) | {"sum |w|": sum(abs(k).sum() for k in kernels), "exact zeros": zeros}


# 弹性网是 L1 与 L2 之和,所以三者又是一个对象的三个点 | the elastic net is the sum of both
strengths = {"l1": jnp.array([0, lam, 0]), "l2": jnp.array([0, 0, lam])}
both = penalties.ElasticNet(strengths["l1"] / m, l2=strengths["l2"] / m).on("**/kernel")
compared = sweeps.run(
    lambda hp: with_weights(trained({**hp, "lr": schedule}, half_mse, hp["penalty"])),
    sweeps.grid(penalty=both, key=seeds),
)
show(compared, ("无 none", "L1", "L2"))

# %% [markdown]
# L1 把大多数权重变小,但 Adam 下没有一个恰好为 0。要得到真正的零,用近端算子 (prox) | L1 makes most weights
# small, yet under Adam none is exactly 0. For real zeros, take the prox in place of the term:


# %%
def sparse(hp):
    tx = transforms.proximal(optax.adam(schedule), l1, schedule)
    state = training.init(module, tx, key=hp["key"], example=x[:1])
    step = training.make_step(module, half_mse, tx)
    return with_weights(training.scan(step, state, data, steps=max_iter)[0].params)


show(sweeps.run(sparse, sweeps.grid(key=seeds)), ("L1, prox",))

# %% [markdown]
# ## 三、应用 | Applications
#
# 文章提到三种应用,每一种都有一个离线运行的完整程序 | the article names three; each has a whole program that
# runs offline:
#
# | 应用 | application | 程序 program |
# |---|---|---|
# | 图像分类 | images | [examples/image.py](examples/image.py) |
# | 文本 | text | [examples/text.py](examples/text.py) |
# | 语音识别 | speech | [examples/speech.py](examples/speech.py) |
