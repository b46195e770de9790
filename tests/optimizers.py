"""Optax's optimizers as functions of the learning rate, by what is known of their step sizes."""

import optax

KNOWN = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "nesterov": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "adam": optax.adam,
    "adam, other constants": lambda lr: optax.adam(lr, b1=0.95, b2=0.98, eps=1e-4),
    "adam, eps_root": lambda lr: optax.adam(lr, eps_root=1e-6),
    "adamw": lambda lr: optax.adamw(lr, weight_decay=0.0),
    "nadam": optax.nadam,
    "nadamw": lambda lr: optax.nadamw(lr, weight_decay=0.0),
    "amsgrad": lambda lr: optax.amsgrad(10 * lr),
    "adabelief": optax.adabelief,
    "rmsprop": optax.rmsprop,
    "rmsprop, momentum": lambda lr: optax.rmsprop(lr, momentum=0.9),
    "rmsprop, bias": lambda lr: optax.rmsprop(lr, bias_correction=True, eps_in_sqrt=False),
    "adagrad": lambda lr: optax.adagrad(50 * lr),
    "finite adam": lambda lr: optax.apply_if_finite(optax.adam(lr), 3),
    "injected adam": lambda lr: optax.inject_hyperparams(optax.adam)(learning_rate=lr),
}
UNKNOWN = {
    "lion": optax.lion,
    "lamb": optax.lamb,
    "radam": optax.radam,
    "adamax": optax.adamax,
    "yogi": optax.yogi,
    "adan": optax.adan,
    "adadelta": optax.adadelta,
    "adafactor": optax.adafactor,
    "sign_sgd": optax.sign_sgd,
    "fromage": optax.fromage,
    "prodigy": optax.contrib.prodigy,
    "adaptive clipping": lambda lr: optax.chain(optax.adaptive_grad_clip(0.01), optax.adam(lr)),
    "muon": optax.contrib.muon,
    "multi steps": lambda lr: optax.MultiSteps(optax.adam(lr), 2).gradient_transformation(),
}


CLIPPED = {
    "before adam": lambda lr: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(lr)),
    "before adam, each": lambda lr: optax.chain(optax.clip(0.1), optax.adam(lr)),
    "before adam, hardly ever": lambda lr: optax.chain(
        optax.clip_by_global_norm(1e4), optax.adam(lr)
    ),
    "before slow adam": lambda lr: optax.chain(optax.clip(1.0), optax.adam(lr, b1=0.999)),
    "after adam": lambda lr: optax.chain(optax.adam(lr), optax.clip(1e-3)),
    "amid adam": lambda lr: optax.chain(
        optax.scale_by_adam(), optax.clip_by_block_rms(0.1), optax.scale_by_learning_rate(lr)
    ),
    "adabelief": lambda lr: optax.chain(optax.clip(1.0), optax.adabelief(lr)),
    "adagrad": lambda lr: optax.chain(optax.clip(10.0), optax.adagrad(lr)),
    "sgd": lambda lr: optax.chain(optax.clip(1.0), optax.sgd(lr)),
    "momentum": lambda lr: optax.chain(optax.clip(0.1), optax.sgd(lr, momentum=0.9)),
    "after nesterov": lambda lr: optax.chain(
        optax.sgd(lr, momentum=0.9, nesterov=True), optax.clip(1e-3)
    ),
    "rmsprop": lambda lr: optax.chain(
        optax.clip_by_global_norm(0.5), optax.rmsprop(lr, momentum=0.9)
    ),
    "after rmsprop": lambda lr: optax.chain(optax.rmsprop(lr, centered=True), optax.clip(1e-3)),
}
