"""From a config to an optax transformation."""

import optax

from lstm_jax.config import Config
from lstm_jax.errors import UserError


def learning_rate(config: Config, num_steps: int) -> optax.Schedule:
    """The learning rate over the steps.

    Args:
      config: the group `optimizer`.
      num_steps: step at which a cosine schedule reaches zero.

    Raises:
      UserError: an unknown schedule, or a warm-up that does not end in time.
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    if not 0 <= warmup < max(num_steps, 1):
        raise UserError(
            f"optimizer.warmup_steps={warmup} must be at least 0 and less than the "
            f"number of steps, {num_steps}"
        )
    if config.schedule == "constant":
        after = optax.constant_schedule(rate)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, num_steps - warmup)
    else:
        raise UserError(
            f"unknown optimizer.schedule {config.schedule!r}: choose constant or cosine"
        )
    if warmup == 0:
        return after
    rise = optax.linear_schedule(0.0, rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: Config, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a config.

    `rmsprop` is Keras's: decay 0.9, epsilon inside the root, mean square from 0.
    `rmsprop_tf1` is TensorFlow 1's: epsilon 1e-10 inside the root, mean square from 1.

    Args:
      config: the group `optimizer`.
      num_steps: length of the training, for the schedule.

    Raises:
      UserError: an unknown name or a value out of range.
    """
    for field in ("learning_rate", "clip_norm", "momentum", "weight_decay", "epsilon"):
        if not config[field] >= 0:
            raise UserError(f"optimizer.{field}={config[field]} must be at least 0")
    rate = learning_rate(config, num_steps)
    momentum = config.momentum or None
    makers = {
        "adam": lambda: optax.adam(rate, eps=config.epsilon),
        "adamw": lambda: optax.adamw(
            rate, eps=config.epsilon, weight_decay=config.weight_decay
        ),
        "rmsprop": lambda: optax.rmsprop(
            rate, decay=0.9, eps=config.epsilon, momentum=momentum
        ),
        "rmsprop_tf1": lambda: optax.rmsprop(
            rate, decay=0.9, eps=1e-10, initial_scale=1.0, momentum=momentum
        ),
        "sgd": lambda: optax.sgd(rate, momentum=momentum),
    }
    if config.name not in makers:
        raise UserError(
            f"unknown optimizer.name {config.name!r}: choose one of {', '.join(makers)}"
        )
    optimizer = makers[config.name]()
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optax.with_extra_args_support(optimizer)
