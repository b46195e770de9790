"""The schedulers of other libraries that `jax_lrreg.interop` must equal, and their record.

`CASES` holds, for each library, expressions that make one of its live schedulers, and how many
updates are compared. The expression is the name of the case. Running this file where the libraries
are installed,

    python tests/parity/record.py [library ...]

writes `tests/parity/<library>.json`: versions, and for each case a description of the live object
in plain data (so that a test can put up a stand-in that looks the same to the converters) and its
values, update by update. The description is taken at the end of the run. `GROUPS` has schedulers
of several parameter groups, `REFUSED` what has no equal, with a piece of the message.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import sys
import types
import warnings
from typing import Any

FOLDER = pathlib.Path(__file__).parent
ONCE = range(40)
LONG = [*range(5), *range(5, 6001, 97)]

CASES: dict[str, dict[str, Any]] = {
    "torch": {
        "ConstantLR(sgd())": ONCE,
        "ConstantLR(sgd(), factor=0.25, total_iters=7)": ONCE,
        "ConstantLR(sgd(), total_iters=0)": ONCE,
        "LinearLR(sgd())": ONCE,
        "LinearLR(sgd(), start_factor=0.1, end_factor=0.5, total_iters=8)": ONCE,
        "LinearLR(sgd(), start_factor=1.0, end_factor=0.0, total_iters=10)": ONCE,
        "LinearLR(sgd(), total_iters=0)": ONCE,
        "LinearLR(sgd(), start_factor=0.1, end_factor=0.0, total_iters=3)": ONCE,
        "LinearLR(sgd(), start_factor=0.1, total_iters=4.5)": ONCE,
        "LinearLR(sgd(), start_factor=0.001, total_iters=2000)": LONG,
        "ExponentialLR(sgd(), gamma=0.9)": ONCE,
        "ExponentialLR(sgd(), gamma=1.05)": ONCE,
        "ExponentialLR(sgd(), gamma=0.0)": ONCE,
        "ExponentialLR(sgd(), gamma=0.999)": LONG,
        "StepLR(sgd(), step_size=3, gamma=0.5)": ONCE,
        "StepLR(sgd(), step_size=30)": ONCE,
        "StepLR(sgd(), step_size=5, gamma=0.0)": ONCE,
        "MultiStepLR(sgd(), milestones=[3, 7, 7, 12], gamma=0.5)": ONCE,
        "MultiStepLR(sgd(), milestones=[9, 2, 0, -4])": ONCE,
        "MultiStepLR(sgd(), milestones=[])": ONCE,
        "PolynomialLR(sgd())": ONCE,
        "PolynomialLR(sgd(), total_iters=10, power=2.0)": ONCE,
        "PolynomialLR(sgd(), total_iters=10, power=0.5)": ONCE,
        "PolynomialLR(sgd(), total_iters=10, power=0)": ONCE,
        "PolynomialLR(sgd(), total_iters=0)": ONCE,
        "PolynomialLR(sgd(), total_iters=2000, power=0.9)": LONG,
        "CosineAnnealingLR(sgd(), T_max=10)": ONCE,
        "CosineAnnealingLR(sgd(), T_max=10, eta_min=0.01)": ONCE,
        "CosineAnnealingLR(sgd(), T_max=7, eta_min=0.2)": ONCE,
        "CosineAnnealingLR(sgd(), T_max=1)": ONCE,
        "CosineAnnealingLR(sgd(), T_max=4.5, eta_min=0.01)": ONCE,
        "CosineAnnealingLR(sgd(), T_max=2000, eta_min=0.001)": LONG,
        "CosineAnnealingLR(adam(3e-4), T_max=13)": ONCE,
        "CosineAnnealingLR(sgd(tensor(0.1)), T_max=13)": ONCE,
        "CosineAnnealingWarmRestarts(sgd(), T_0=10)": ONCE,
        "CosineAnnealingWarmRestarts(sgd(), T_0=5, T_mult=2, eta_min=0.01)": range(90),
        "CosineAnnealingWarmRestarts(sgd(), T_0=2, T_mult=3)": range(90),
        "CosineAnnealingWarmRestarts(sgd(), T_0=100, T_mult=2)": LONG,
        "CyclicLR(sgd(momentum=0.9), base_lr=0.01, max_lr=0.1, step_size_up=4)": ONCE,
        "CyclicLR(sgd(momentum=0.9), base_lr=0.01, max_lr=0.1, step_size_up=3, "
        "step_size_down=5)": ONCE,
        "CyclicLR(sgd(), 0.0, 0.1, step_size_up=4, mode='triangular2', cycle_momentum=False)": ONCE,
        "CyclicLR(adam(), 0.01, 0.1, step_size_up=4, mode='exp_range', gamma=0.95)": ONCE,
        "CyclicLR(sgd(), 0.01, 0.1, step_size_up=2.5, step_size_down=3.5, "
        "cycle_momentum=False)": ONCE,
        "OneCycleLR(sgd(momentum=0.9), max_lr=0.1, total_steps=20)": range(21),
        "OneCycleLR(sgd(), max_lr=0.1, epochs=3, steps_per_epoch=11, cycle_momentum=False)": range(
            34
        ),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=20, three_phase=True)": range(21),
        "OneCycleLR(adam(), 0.1, total_steps=20, pct_start=0.33, div_factor=10.0, "
        "final_div_factor=100.0)": range(21),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=20, anneal_strategy='linear')": range(20),
        "OneCycleLR(adam(), 0.1, total_steps=25, anneal_strategy='linear', three_phase=True, "
        "pct_start=0.4)": range(25),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=20, pct_start=0.0)": range(21),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=10, pct_start=0.05)": range(11),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=3)": range(4),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=20, pct_start=0.8, three_phase=True)": range(
            21
        ),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=1)": range(2),
        "OneCycleLR(adam(), max_lr=0.1, total_steps=5999)": LONG[:-1],
        "LambdaLR(sgd(), lambda epoch: 0.5)": ONCE,
        "MultiplicativeLR(sgd(), lambda epoch: 0.95)": ONCE,
        "sequential([ConstantLR(o), ExponentialLR(o, 0.9)], [20])": ONCE,
        "sequential([LinearLR(o, 0.1, total_iters=5), CosineAnnealingLR(o, 10, eta_min=0.01)], "
        "[5])": ONCE,
        "sequential([LinearLR(o, total_iters=9), CosineAnnealingLR(o, 10)], [4])": ONCE,
        "sequential([LinearLR(o, 0.1), StepLR(o, 4, 0.5), MultiStepLR(o, [0, 3], 0.5)], [6, "
        "15])": ONCE,
        "sequential([LinearLR(o), CosineAnnealingWarmRestarts(o, 3, 2)], [5])": ONCE,
        "sequential([CosineAnnealingWarmRestarts(o, 3, 2), PolynomialLR(o, 6)], [7])": ONCE,
        "sequential([PolynomialLR(o, 8, 2.0), ConstantLR(o, 0.1, 0), LinearLR(o)], [8, 12])": ONCE,
        "sequential([LinearLR(o), ExponentialLR(o, 0.9)], [0])": ONCE,
        "sequential([LinearLR(o), ExponentialLR(o, 0.9), StepLR(o, 3)], [4, 4])": ONCE,
        "sequential([LinearLR(o), MultiplicativeLR(o, lambda epoch: 0.95)], [4])": ONCE,
        "sequential([LinearLR(o), LambdaLR(o, lambda epoch: 0.5)], [4])": ONCE,
        "sequential([CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False), ExponentialLR(o, 0.9)], "
        "[12])": ONCE,
        "sequential([LinearLR(o), OneCycleLR(o, 0.2, 30, cycle_momentum=False)], [5])": range(36),
        "sequential([LinearLR(o)], [])": ONCE,
        "ChainedScheduler([ConstantLR(o, 0.1, 4), ExponentialLR(o, 0.9)])": ONCE,
        "ChainedScheduler([LinearLR(o, 0.1, total_iters=6), StepLR(o, 5, 0.5), MultiStepLR(o, "
        "[3, 9], 0.7)])": ONCE,
        "ChainedScheduler([LinearLR(o, 0.1), PolynomialLR(o, 20, 2.0)])": ONCE,
        "ChainedScheduler([LinearLR(o, 0.1), CosineAnnealingLR(o, 15)])": range(80),
        "ChainedScheduler([LinearLR(o, 0.1, 0.5), CosineAnnealingLR(o, 15, eta_min=0.01)])": range(
            80
        ),
        "ChainedScheduler([CosineAnnealingLR(o, 15, eta_min=0.01), LinearLR(o, 0.1), "
        "ConstantLR(o, 0.5, 8)])": range(80),
        "ChainedScheduler([CosineAnnealingLR(o, 10), ExponentialLR(o, 0.9)])": range(80),
        "ChainedScheduler([ExponentialLR(o, 0.9), CosineAnnealingLR(o, 10), LinearLR(o)])": range(
            80
        ),
        "ChainedScheduler([CosineAnnealingLR(o, 8), LinearLR(o, 0.3, 0.5, 11), PolynomialLR(o, "
        "4)])": range(80),
        "ChainedScheduler([CosineAnnealingLR(o, 3, 0.02), LinearLR(o, 0.1, 1.0, 3)])": range(80),
        "ChainedScheduler([LinearLR(o, 0.1), CosineAnnealingWarmRestarts(o, 5, 2)])": ONCE,
        "ChainedScheduler([ChainedScheduler([LinearLR(o), ExponentialLR(o, 0.9)]), StepLR(o, "
        "4)])": ONCE,
        "ChainedScheduler([MultiplicativeLR(o, lambda epoch: 0.9), LinearLR(o)])": ONCE,
    },
    "transformers": {
        "get_scheduler('constant', sgd())": ONCE,
        "get_scheduler('constant_with_warmup', sgd(), num_warmup_steps=5)": ONCE,
        "get_scheduler('constant_with_warmup', sgd(), num_warmup_steps=0)": ONCE,
        "get_scheduler('linear', sgd(), num_warmup_steps=5, num_training_steps=25)": ONCE,
        "get_scheduler('linear', sgd(), num_warmup_steps=0, num_training_steps=25)": ONCE,
        "get_scheduler('linear', sgd(), num_warmup_steps=8, num_training_steps=8)": ONCE,
        "get_scheduler('linear', sgd(), num_warmup_steps=9, num_training_steps=8)": ONCE,
        "get_scheduler('linear', sgd(), num_warmup_steps=100, num_training_steps=5000)": LONG,
        "get_scheduler('cosine', sgd(), num_warmup_steps=5, num_training_steps=25)": range(80),
        "get_scheduler('cosine', sgd(), num_warmup_steps=0, num_training_steps=20)": range(80),
        "get_scheduler('cosine', sgd(), num_warmup_steps=8, num_training_steps=8)": ONCE,
        "get_scheduler('cosine', sgd(), 5, 25, "
        "scheduler_specific_kwargs={'num_cycles': 1.5})": range(80),
        "get_scheduler('cosine', sgd(), 5, 25, scheduler_specific_kwargs={'num_cycles': 0})": ONCE,
        "get_scheduler('cosine', sgd(), num_warmup_steps=100, num_training_steps=5000)": LONG,
        "get_scheduler('cosine_with_restarts', sgd(), num_warmup_steps=5, "
        "num_training_steps=25)": ONCE,
        "get_scheduler('cosine_with_restarts', sgd(), 4, 34, "
        "scheduler_specific_kwargs={'num_cycles': 3})": range(60),
        "get_scheduler('cosine_with_restarts', sgd(), 0, 20, "
        "scheduler_specific_kwargs={'num_cycles': 3})": ONCE,
        "get_scheduler('cosine_with_restarts', sgd(), 0, 20, "
        "scheduler_specific_kwargs={'num_cycles': 2.5})": ONCE,
        "get_scheduler('polynomial', sgd(), num_warmup_steps=5, num_training_steps=25)": ONCE,
        "get_scheduler('polynomial', sgd(), 5, 25, scheduler_specific_kwargs={'power': 2.0, "
        "'lr_end': 0.01})": ONCE,
        "get_scheduler('polynomial', sgd(), 0, 25, scheduler_specific_kwargs={'power': 0, "
        "'lr_end': 0.01})": ONCE,
        "get_scheduler('polynomial', sgd(), num_warmup_steps=9, num_training_steps=8)": ONCE,
        "get_scheduler('inverse_sqrt', sgd(), num_warmup_steps=5)": ONCE,
        "get_scheduler('inverse_sqrt', sgd(), num_warmup_steps=0)": ONCE,
        "get_scheduler('inverse_sqrt', sgd(), 5, scheduler_specific_kwargs={'timescale': 3})": ONCE,
        "get_scheduler('cosine_with_min_lr', sgd(), 5, 25, "
        "scheduler_specific_kwargs={'min_lr': 0.01})": range(80),
        "get_scheduler('cosine_with_min_lr', sgd(), 5, 25, "
        "scheduler_specific_kwargs={'min_lr_rate': 0.2})": range(80),
        "get_scheduler('cosine_warmup_with_min_lr', sgd(), 5, 25, "
        "scheduler_specific_kwargs={'min_lr': 0.01})": range(80),
        "get_scheduler('cosine_warmup_with_min_lr', sgd(), 5, 25, scheduler_specific_kwargs="
        "{'min_lr_rate': 0.1, 'warmup_lr_rate': 0.3})": range(80),
        "get_scheduler('cosine_warmup_with_min_lr', sgd(), 1, 25, scheduler_specific_kwargs="
        "{'min_lr_rate': 0.1, 'warmup_lr_rate': 0.3})": ONCE,
        "get_scheduler('cosine_warmup_with_min_lr', sgd(), 0, 25, "
        "scheduler_specific_kwargs={'min_lr': 0.01})": ONCE,
        "get_scheduler('warmup_stable_decay', sgd(), 5, 25, "
        "scheduler_specific_kwargs={'num_decay_steps': 10})": ONCE,
        "wsd(num_warmup_steps=5, num_decay_steps=10, num_training_steps=25)": ONCE,
        "wsd(num_warmup_steps=5, num_decay_steps=10, num_stable_steps=8, min_lr_ratio=0.1)": ONCE,
        "wsd(5, 10, num_stable_steps=8, warmup_type='cosine', decay_type='linear', "
        "min_lr_ratio=0.1)": ONCE,
        "wsd(5, 10, num_stable_steps=8, warmup_type='1-sqrt', decay_type='1-sqrt')": ONCE,
        "wsd(5, 10, num_stable_steps=8, decay_type='1-sqrt', min_lr_ratio=0.1)": ONCE,
        "wsd(5, 10, num_stable_steps=8, num_cycles=1.5, min_lr_ratio=0.1)": ONCE,
        "wsd(0, 10, num_stable_steps=0)": ONCE,
        "wsd(5, 10, num_training_steps=12)": ONCE,
        "wsd(5, 0, num_stable_steps=0, min_lr_ratio=0.1)": ONCE,
    },
    "timm": {
        "CosineLRScheduler(sgd(), t_initial=20)": ONCE,
        "CosineLRScheduler(sgd(), t_initial=20, lr_min=0.001, warmup_t=5, "
        "warmup_lr_init=0.01)": ONCE,
        "CosineLRScheduler(sgd(), t_initial=20, warmup_t=5, warmup_lr_init=0.01, "
        "warmup_prefix=True)": ONCE,
        "CosineLRScheduler(sgd(), t_initial=8, warmup_t=10, t_in_epochs=False)": ONCE,
        "CosineLRScheduler(sgd(), t_initial=10, cycle_limit=3, cycle_decay=0.5, "
        "lr_min=0.001)": range(60),
        "CosineLRScheduler(sgd(), t_initial=10, cycle_limit=3, cycle_mul=2.0, cycle_decay=0.5, "
        "warmup_t=3)": range(90),
        "CosineLRScheduler(sgd(), 10, cycle_limit=3, cycle_mul=1.5, warmup_t=3, "
        "warmup_prefix=True)": range(60),
        "CosineLRScheduler(sgd(), t_initial=10, cycle_limit=2, cycle_decay=0.001, "
        "lr_min=0.01)": ONCE,
        "CosineLRScheduler(sgd(), t_initial=20, k_decay=2.0, lr_min=0.001)": ONCE,
        "CosineLRScheduler(sgd(), t_initial=20, k_decay=0.5, cycle_limit=2)": range(60),
        "CosineLRScheduler(sgd(), t_initial=20, cycle_limit=0)": ONCE,
        "CosineLRScheduler(sgd(), t_initial=5000, warmup_t=100, lr_min=1e-5)": LONG,
        "CosineLRScheduler(sgd(lr_scale=0.5), t_initial=20, lr_min=0.001, warmup_t=5)": ONCE,
        "TanhLRScheduler(sgd(), t_initial=20)": ONCE,
        "TanhLRScheduler(sgd(), t_initial=20, lb=-3.0, ub=2.0, lr_min=0.01)": ONCE,
        "TanhLRScheduler(sgd(), t_initial=20, warmup_t=5, warmup_lr_init=0.01)": ONCE,
        "TanhLRScheduler(sgd(), t_initial=20, warmup_t=5, warmup_prefix=True)": ONCE,
        "TanhLRScheduler(sgd(), t_initial=10, cycle_limit=3, cycle_mul=2.0, "
        "cycle_decay=0.5)": range(90),
        "PolyLRScheduler(sgd(), t_initial=20)": ONCE,
        "PolyLRScheduler(sgd(), t_initial=20, power=2.0, lr_min=0.001, warmup_t=5, "
        "warmup_lr_init=0.01)": ONCE,
        "PolyLRScheduler(sgd(), t_initial=20, power=1.0, warmup_t=5, warmup_prefix=True)": ONCE,
        "PolyLRScheduler(sgd(), t_initial=20, k_decay=2.0, lr_min=0.001)": ONCE,
        "PolyLRScheduler(sgd(), t_initial=10, cycle_limit=3, cycle_mul=2.0, "
        "cycle_decay=0.5)": range(90),
        "StepLRScheduler(sgd(), decay_t=6, decay_rate=0.5)": ONCE,
        "StepLRScheduler(sgd(), decay_t=6)": ONCE,
        "StepLRScheduler(sgd(), decay_t=6, decay_rate=0.5, warmup_t=4, warmup_lr_init=0.01)": ONCE,
        "StepLRScheduler(sgd(), decay_t=2.4, decay_rate=0.5, warmup_t=4, "
        "warmup_prefix=False)": ONCE,
        "MultiStepLRScheduler(sgd(), decay_t=[5, 9, 9, 20], decay_rate=0.5)": ONCE,
        "MultiStepLRScheduler(sgd(), decay_t=[1, 9], decay_rate=0.5)": ONCE,
        "MultiStepLRScheduler(sgd(), decay_t=[5, 9], decay_rate=0.5, warmup_t=4, "
        "warmup_lr_init=0.01)": ONCE,
        "MultiStepLRScheduler(sgd(), decay_t=[3, 9], decay_rate=0.5, warmup_t=4, "
        "warmup_prefix=False)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=8)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=8, warmup_t=5, warmup_lr_init=0.01, "
        "lr_min=0.001)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=20, decay_fn='linear', lr_min=0.001)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=8, decay_fn='cosine', lr_min=0.001)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=8, decay_fn='power', decay_power=2.0, "
        "lr_min=0.001)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=8, decay_fn='exp', lr_min=0.001)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=8, decay_fn='exp', decay_ratio=0.01)": ONCE,
        "WSDLRScheduler(sgd(), t_initial=20, decay_t=8, stable_fn='rsqrt', warmup_t=4)": ONCE,
        "WSDLRScheduler(sgd(), 20, 8, stable_fn='rsqrt', warmup_t=4, decay_fn='linear', "
        "lr_min=0.05)": ONCE,
        "WSDLRScheduler(sgd(), 20, 8, stable_fn='power', stable_timescale=3.0, "
        "stable_power=0.7, lr_min=0.01)": ONCE,
        "create_scheduler_v2(sgd(), num_epochs=20, warmup_epochs=3, min_lr=1e-5)[0]": ONCE,
        "create_scheduler_v2(sgd(), 'rsqrt', num_epochs=20, warmup_epochs=3)[0]": ONCE,
        "create_scheduler_v2(sgd(), 'constant', num_epochs=20, warmup_epochs=3)[0]": ONCE,
    },
    "keras": {
        "ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5)": ONCE,
        "ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5, staircase=True)": ONCE,
        "ExponentialDecay(0.1, decay_steps=2.5, decay_rate=0.9, staircase=True)": ONCE,
        "ExponentialDecay(0.1, decay_steps=1000, decay_rate=0.96)": LONG,
        "ExponentialDecay(0.1, decay_steps=10, decay_rate=0.0)": ONCE,
        "ExponentialDecay(0.1, decay_steps=10, decay_rate=0.0, staircase=True)": ONCE,
        "PiecewiseConstantDecay([4, 9], [0.1, 0.05, 0.01])": ONCE,
        "PiecewiseConstantDecay([4.7, 9], [0.1, 0.05, 0.2])": ONCE,
        "PiecewiseConstantDecay([0, 9], [0.1, 0.05, 0.01])": ONCE,
        "PolynomialDecay(0.1, decay_steps=20)": ONCE,
        "PolynomialDecay(0.1, decay_steps=20, end_learning_rate=0.01, power=2.0)": ONCE,
        "PolynomialDecay(0.1, decay_steps=5000, power=0.5)": LONG,
        "PolynomialDecay(0.1, decay_steps=10, end_learning_rate=0.01, power=2.0, cycle=True)": ONCE,
        "PolynomialDecay(0.1, decay_steps=10, cycle=True)": range(120),
        "InverseTimeDecay(0.1, decay_steps=10, decay_rate=0.5)": ONCE,
        "InverseTimeDecay(0.1, decay_steps=10, decay_rate=0.5, staircase=True)": ONCE,
        "InverseTimeDecay(0.1, decay_steps=1000, decay_rate=2.0)": LONG,
        "CosineDecay(0.1, decay_steps=20)": ONCE,
        "CosineDecay(0.1, decay_steps=20, alpha=0.1)": ONCE,
        "CosineDecay(0.01, decay_steps=20, alpha=0.1, warmup_target=0.1, warmup_steps=5)": ONCE,
        "CosineDecay(0.0, decay_steps=20, warmup_target=0.1, warmup_steps=5)": ONCE,
        "CosineDecay(0.01, decay_steps=20, warmup_target=0.1)": ONCE,
        "CosineDecay(0.1, decay_steps=20, warmup_steps=5)": ONCE,
        "CosineDecay(0.1, decay_steps=5000)": LONG,
        "CosineDecayRestarts(0.1, first_decay_steps=10)": range(90),
        "CosineDecayRestarts(0.1, 10, m_mul=1.5)": range(90),
        "CosineDecayRestarts(0.1, first_decay_steps=10, t_mul=1.0, m_mul=0.5, alpha=0.1)": range(
            60
        ),
        "CosineDecayRestarts(0.1, first_decay_steps=10, t_mul=1.5, m_mul=0.9, alpha=0.01)": range(
            60
        ),
        "CosineDecayRestarts(0.1, first_decay_steps=200, t_mul=2.0, m_mul=0.9)": LONG,
    },
    "optax": {
        "constant_schedule(0.1)": ONCE,
        "linear_schedule(0.1, 0.01, 20)": ONCE,
        "linear_schedule(0.1, 0.01, 20, transition_begin=5)": ONCE,
        "linear_schedule(0.1, 0.01, 20, transition_begin=-5)": ONCE,
        "linear_schedule(0.1, 0.01, 0)": ONCE,
        "polynomial_schedule(0.1, 0.01, 2.0, 20)": ONCE,
        "polynomial_schedule(0.01, 0.1, 0.5, 20, 3)": ONCE,
        "polynomial_schedule(0.1, 0.01, 0, 20)": ONCE,
        "piecewise_constant_schedule(0.1, {5: 0.5, 12: 0.1})": ONCE,
        "piecewise_constant_schedule(0.1, {12: 0.1, 0: 0.5, 20: 0.0})": ONCE,
        "piecewise_constant_schedule(0.1)": ONCE,
        "exponential_decay(0.1, 10, 0.5)": ONCE,
        "exponential_decay(0.1, 10, 0.5, transition_begin=5, staircase=True)": ONCE,
        "exponential_decay(0.1, 10, 0.5, transition_begin=5, end_value=0.03)": ONCE,
        "exponential_decay(0.1, 10, 1.5, end_value=0.2)": ONCE,
        "exponential_decay(0.1, 10, 0)": ONCE,
        "exponential_decay(0.1, 1000, 0.96)": LONG,
        "cosine_decay_schedule(0.1, 20)": ONCE,
        "cosine_decay_schedule(0.1, 20, alpha=0.1, exponent=1.5)": ONCE,
        "cosine_decay_schedule(0.1, 5000)": LONG,
        "piecewise_interpolate_schedule('linear', 0.1, {5: 0.5, 12: 3.0})": ONCE,
        "piecewise_interpolate_schedule('cosine', 0.1, {12: 3.0, 5: 0.5})": ONCE,
        "piecewise_interpolate_schedule('cosine', 0.1, {0: 0.5, 7: 0.1})": ONCE,
        "piecewise_interpolate_schedule('linear', 0.1)": ONCE,
        "linear_onecycle_schedule(20, 0.1)": ONCE,
        "linear_onecycle_schedule(2, 0.1)": ONCE,
        "cosine_onecycle_schedule(20, 0.1, pct_start=0.25)": ONCE,
        "warmup_constant_schedule(0.0, 0.1, 5)": ONCE,
        "warmup_constant_schedule(0.02, 0.1, 0)": ONCE,
        "warmup_cosine_decay_schedule(0.0, 0.1, 5, 25)": ONCE,
        "warmup_cosine_decay_schedule(0.01, 0.1, 5, 25, 0.001, 2.0)": ONCE,
        "warmup_cosine_decay_schedule(0.0, 0.1, 0, 25)": ONCE,
        "warmup_exponential_decay_schedule(0.0, 0.1, 5, 10, 0.5, transition_begin=3, "
        "end_value=0.02)": ONCE,
        "warmup_exponential_decay_schedule(0.0, 0.1, 5, 10, 0.5, staircase=True)": ONCE,
        "sgdr_schedule([dict(init_value=0.0, peak_value=0.1, decay_steps=15, warmup_steps=3),"
        " dict(init_value=0.01, peak_value=0.05, decay_steps=10, warmup_steps=2, "
        "end_value=0.001)])": ONCE,
        "join_schedules([constant_schedule(0.1), linear_schedule(0.2, 0, 9), "
        "constant_schedule(0.05)], [5, 20])": ONCE,
        "join_schedules([constant_schedule(0.1), constant_schedule(0.2), "
        "constant_schedule(0.3)], [20, 5])": ONCE,
        "join_schedules([constant_schedule(0.1), linear_schedule(0.2, 0.0, 10)], [-3])": ONCE,
        "join_schedules([constant_schedule(0.1), linear_schedule(0.2, 0.0, 10), "
        "constant_schedule(0.3)], [5])": ONCE,
    },
}
GROUPS: dict[str, dict[str, Any]] = {
    "torch": {
        "StepLR(two(), 3, 0.5)": ONCE,
        "OneCycleLR(two(), max_lr=[0.1, 0.3], total_steps=20, cycle_momentum=False)": range(21),
        "CyclicLR(two(), [0.01, 0.02], [0.1, 0.4], step_size_up=4, cycle_momentum=False)": ONCE,
        "LambdaLR(two(), [lambda epoch: 0.5, lambda epoch: 0.25])": ONCE,
        "ChainedScheduler([LinearLR(t), CosineAnnealingLR(t, 10)])": ONCE,
        "SequentialLR(t, [LinearLR(t), CosineAnnealingLR(t, 10)], [5])": ONCE,
    },
    "transformers": {
        "get_scheduler('polynomial', two(), num_warmup_steps=5, num_training_steps=25)": ONCE
    },
    "timm": {"CosineLRScheduler(two(), t_initial=20, warmup_t=5, lr_min=0.001)": ONCE},
}
REFUSED: dict[str, dict[str, str]] = {
    "torch": {
        "ReduceLROnPlateau(sgd())": "follows a metric",
        "LambdaLR(sgd(), lambda epoch: 1 / (epoch + 1))": "`lr_lambda` is a function of the user's",
        "MultiplicativeLR(sgd(), lambda epoch: 1 / (epoch + 1))": (
            "`lr_lambda` is a function of the user's"
        ),
        "CyclicLR(sgd(), 0.1, 0.2, scale_fn=lambda x: 1 / x, cycle_momentum=False)": (
            "`scale_fn` is a function"
        ),
        "ConstantLR(sgd(), factor=0)": "PyTorch itself divides by zero",
        "ExponentialLR(sgd(), -0.5)": "`decay_rate` must be a positive number, got -0.5",
        "ChainedScheduler([CosineAnnealingLR(o, 10, 0.01), ExponentialLR(o, 0.9)])": (
            "and ExponentialLR together"
        ),
        "ChainedScheduler([CosineAnnealingLR(o, 10), StepLR(o, 7)])": (
            "CosineAnnealingLR and StepLR"
        ),
        "ChainedScheduler([CosineAnnealingWarmRestarts(o, 10), LinearLR(o)])": (
            "CosineAnnealingWarmRestarts computes"
        ),
        "ChainedScheduler([CosineAnnealingLR(o, 10), CosineAnnealingLR(o, 9)])": (
            "more than one CosineAnnealingLR"
        ),
        "ChainedScheduler([sequential([LinearLR(o), StepLR(o, 3)], [5]), StepLR(o, 3)])": (
            "a SequentialLR in it"
        ),
        "sequential([sequential([LinearLR(o), StepLR(o, 3)], [5]), StepLR(o, 3)], [9])": (
            "it holds a SequentialLR"
        ),
        "sequential([LinearLR(o), StepLR(o, 3), StepLR(o, 2)], [9, 5])": "not whole and rising",
        "Mine(sgd())": "Mine cannot be converted: from_torch knows",
        "changed(StepLR(sgd(), 3))": (
            "its learning rate is 0.7 at step 0, where its definition gives 0.1"
        ),
    },
    "transformers": {
        "get_scheduler('reduce_lr_on_plateau', sgd())": (
            "ReduceLROnPlateau cannot be converted: it follows a metric"
        ),
        "get_scheduler('greedy', sgd())": (
            r"it follows a metric; see schedules\.Greedy\.like_transformers"
        ),
    },
    "timm": {
        "PlateauLRScheduler(sgd())": "follows a metric",
        "CosineLRScheduler(sgd(), 20, noise_range_t=[5, 10])": "`noise_range_t` adds random noise",
        "WSDLRScheduler(sgd(), 20, 8, decay_fn=lambda x: 1 - x)": (
            "`decay_fn` is a function of the user's"
        ),
        "CosineLRScheduler(sgd(), 20, k_decay=2.0, cycle_limit=1000)": "`cycle_limit` is 1000",
    },
    "keras": {
        "Mine()": "Mine cannot be converted: from_keras knows ExponentialDecay",
        "PiecewiseConstantDecay([9, 4], [0.1, 0.05, 0.01])": "not rising",
    },
    "optax": {
        "lambda step: 0.1 / (step + 1)": "from_optax knows what constant_schedule, .* make",
        "join_schedules([lambda step: 0.1, constant_schedule(0.1)], [5])": (
            "<lambda> cannot be converted"
        ),
    },
}
PACKAGES = {
    "torch": ["torch"],
    "transformers": ["transformers", "torch"],
    "timm": ["timm", "torch"],
    "keras": ["keras"],
}


def namespace(library: str) -> dict[str, Any]:
    """What the expressions of `CASES[library]` may use, or an ImportError."""
    if library == "optax":
        return dict(vars(importlib.import_module("optax")))
    if library == "keras":
        names = dict(vars(importlib.import_module("keras").optimizers.schedules))
        return names | {"Mine": type("Mine", (names["LearningRateSchedule"],), {})}
    torch = importlib.import_module("torch")

    def optimizer(kind: str, lr: Any = 0.1, **options: Any) -> Any:
        group = {"params": [torch.nn.Parameter(torch.zeros(1))]}
        if "lr_scale" in options:
            group["lr_scale"] = options.pop("lr_scale")
        return getattr(torch.optim, kind)([group], lr=lr, **options)

    def two(lr: float = 0.1) -> Any:
        both = optimizer("SGD", lr)
        both.add_param_group(
            {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr / 2, "lr_scale": 0.3}
        )
        return both

    def changed(scheduler: Any) -> Any:
        scheduler._last_lr = [0.7]
        return scheduler

    sgd = functools.partial(optimizer, "SGD")
    names: dict[str, Any] = {"sgd": sgd, "adam": functools.partial(optimizer, "Adam"), "two": two}
    if library == "timm":
        _import_without_torchvision()
        return names | vars(importlib.import_module("timm.scheduler"))
    if library == "transformers":
        optimization = importlib.import_module("transformers.optimization")
        names["wsd"] = lambda *args, **kwargs: optimization.get_wsd_schedule(sgd(), *args, **kwargs)
        return names | {"get_scheduler": optimization.get_scheduler}
    names |= {"o": sgd(), "t": two(), "tensor": torch.tensor, "changed": changed}
    names["Mine"] = type(
        "Mine", (torch.optim.lr_scheduler.LRScheduler,), {"get_lr": lambda self: self.base_lrs}
    )
    names["sequential"] = lambda parts, milestones: torch.optim.lr_scheduler.SequentialLR(
        names["o"], parts, milestones
    )
    return names | {k: v for k, v in vars(torch.optim.lr_scheduler).items() if k[0].isupper()}


def _import_without_torchvision() -> None:
    """Makes `timm.scheduler` importable where `timm` itself is not, for want of torchvision."""
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("timm is not installed")
    package = types.ModuleType("timm")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["timm"] = package


def quietly_imported(library: str, skip: Any) -> None:
    """Imports the library, whatever it warns of; calls `skip` with the reason where that fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            namespace(library)
        except ImportError as error:
            skip(f"{library} is not installed: {error}")


def offered(library: str) -> set[str]:
    """What the library itself lists, by the names that its cases are written with."""
    names = namespace(library)
    if library == "transformers":
        listed = importlib.import_module("transformers.optimization").TYPE_TO_SCHEDULER_FUNCTION
        return {repr(kind.value) for kind in listed}
    if library == "optax":
        public = vars(importlib.import_module("optax.schedules")).items()
        functions = {
            name for name, thing in public if callable(thing) and not isinstance(thing, type)
        }
        return {name for name in functions if name[0].islower() and not name.startswith("inject_")}
    if library == "keras":
        module, base = (
            importlib.import_module("keras").optimizers.schedules,
            names["LearningRateSchedule"],
        )
    elif library == "timm":
        module = importlib.import_module("timm.scheduler")
        base = importlib.import_module("timm.scheduler.scheduler").Scheduler
    else:
        module = importlib.import_module("torch.optim.lr_scheduler")
        base = module.LRScheduler
    classes = {
        name: thing
        for name, thing in vars(module).items()
        if isinstance(thing, type) and name[0] != "_"
    }
    return {name for name, cls in classes.items() if issubclass(cls, base) and cls is not base}


def make(library: str, case: str) -> Any:
    """The live object of a case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eval(case, namespace(library))


def values(library: str, obj: Any, steps: Any, group: int = 0) -> list[float]:
    """The value of a live object while each of the updates `steps`, which rise, is made."""
    if library == "optax":
        return [float(obj(step)) for step in steps]
    if library == "keras":
        return [
            float(obj(importlib.import_module("keras").ops.convert_to_tensor(step, "int32")))
            for step in steps
        ]
    optimizer = obj.optimizer
    found, wanted = [], set(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(max(steps) + 1):
            if step in wanted:
                found.append(float(optimizer.param_groups[group]["lr"]))
            optimizer.step()
            if step == max(steps):
                break
            if library != "timm":
                obj.step()
            elif obj.t_in_epochs:
                obj.step(step + 1)
            else:
                obj.step_update(step + 1)
    return found


def describe(value: Any) -> Any:
    """A live object as plain data: type, module and attributes; see `stand_in`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value).__name__ in ("Tensor", "Parameter"):
        return value.item()
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[key, describe(item)] for key, item in value.items() if key != "params"]}
    if isinstance(value, functools.partial):
        return {
            "partial": describe(value.func),
            "keywords": {k: describe(v) for k, v in value.keywords.items()},
        }
    if isinstance(value, types.FunctionType):
        constant = value(1) if value.__name__ == "<lambda>" and value(1) == value(2) else None
        return {"function": [value.__module__, value.__qualname__], "constant": constant}
    if hasattr(value, "param_groups"):
        return _described(
            value, {"param_groups": value.param_groups, "defaults": {"lr": value.defaults["lr"]}}
        )
    if isinstance(value, types.MethodType | types.BuiltinFunctionType):
        return None
    return _described(value, vars(value))


def _described(value: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    known = {name: describe(item) for name, item in attributes.items()}
    return {"type": [type(value).__module__, type(value).__qualname__], "attributes": known}


def stand_in(description: Any) -> Any:
    """An object that has the type's name and the attributes described, nothing else."""
    if isinstance(description, list):
        return [stand_in(item) for item in description]
    if not isinstance(description, dict):
        return description
    if "dict" in description:
        return {key: stand_in(item) for key, item in description["dict"]}
    if "partial" in description:
        return functools.partial(
            stand_in(description["partial"]), **stand_in_all(description["keywords"])
        )
    if "function" in description:
        constant = description["constant"]
        function = eval("lambda step: 1 / step" if constant is None else f"lambda _: {constant!r}")
        function.__module__, function.__qualname__ = description["function"]
        return function
    module, qualname = description["type"]
    cls = type(qualname.rpartition(".")[2], (), {"__module__": module, "__qualname__": qualname})
    obj = cls()
    obj.__dict__.update(stand_in_all(description["attributes"]))
    return obj


def stand_in_all(descriptions: dict[str, Any]) -> dict[str, Any]:
    """A stand-in for each value of a dictionary."""
    return {name: stand_in(item) for name, item in descriptions.items()}


def record(library: str) -> None:
    """Writes the JSON of one library."""

    def recorded(case: str, steps: Any) -> dict[str, Any]:
        obj = make(library, case)
        count = len(obj.optimizer.param_groups) if case in GROUPS.get(library, {}) else 1
        every = [
            values(library, obj if group == 0 else make(library, case), steps, group)
            for group in range(count)
        ]
        rounded = [[float(f"{x:.9g}") for x in one] for one in every]
        return {"object": describe(obj), "values": rounded[0] if count == 1 else rounded}

    cases = {
        case: recorded(case, steps)
        for case, steps in (CASES[library] | GROUPS.get(library, {})).items()
    }
    cases |= {case: {"object": describe(make(library, case))} for case in REFUSED[library]}
    versions = {package: importlib.metadata.version(package) for package in PACKAGES[library]}
    lines = [
        f"{json.dumps(case)}: {json.dumps(data, separators=(',', ':'))}"
        for case, data in cases.items()
    ]
    text = f'{{"versions": {json.dumps(versions)}, "cases": {{\n' + ",\n".join(lines) + "\n}}\n"
    (FOLDER / f"{library}.json").write_text(text)
    print(f"{library}: {len(cases)} cases, {len(text)} bytes, {versions}")


if __name__ == "__main__":
    for name in sys.argv[1:] or PACKAGES:
        record(name)
