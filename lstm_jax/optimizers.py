"""From a config to an optax transformation."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lstm_jax.config import Config, base_config
from lstm_jax.errors import UserError


def learning_rate(
    config: Config, num_steps: int, rate: Float[Array, ""] | None = None
) -> optax.Schedule:
    """The learning rate over the steps.

    Args:
      config: the group `optimizer`.
      num_steps: step at which a cosine schedule reaches zero.
      rate: in place of the config's, such as that of a sweep's member.

    Raises:
      UserError: an unknown schedule, or a warm-up that does not end in time.
    """
    peak = config.learning_rate if rate is None else rate
    warmup = config.warmup_steps
    if not 0 <= warmup < max(num_steps, 1):
        raise UserError(
            f"optimizer.warmup_steps={warmup} must be at least 0 and less than the "
            f"number of steps, {num_steps}"
        )
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, num_steps - warmup)
    else:
        raise UserError(
            f"unknown optimizer.schedule {config.schedule!r}: choose constant or cosine"
        )
    if warmup == 0:
        return after
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def scale_by_adam(epsilon: float) -> optax.GradientTransformation:
    """Adam as Keras and TensorFlow have it, with decays of 0.9 and 0.999.

    The paper's algorithm, which is optax's, corrects the moments' bias before it adds
    epsilon to the root; here epsilon is added first. In the first hundred steps that
    shrinks the steps where gradients are as small as epsilon, as those of the early
    steps of a long sequence are.

    A complex entry is one parameter: the second moment is that of |g|, so its real and
    imaginary parts have one step size. The gradient is the direction of steepest
    ascent, see `with_conjugates`.

    References:
      Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015, the last
      paragraph of section 2 ("epsilon hat").
    """
    b1, b2 = 0.9, 0.999

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        nu = jax.tree.map(jnp.real, zeros)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, nu)

    def update(
        updates: optax.Updates, state: optax.OptState, params: object = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        # 1 - b**count, which rounds badly where b**count is near 1.
        lack1, lack2 = (-jnp.expm1(count * math.log(b)) for b in (b1, b2))
        scale = jnp.sqrt(lack2) / lack1
        updates = jax.tree.map(
            lambda m, v: scale.astype(m.dtype) * m / (jnp.sqrt(v) + epsilon), mu, nu
        )
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Return Optax's clipping with a norm that does not overflow.

    The sum of squares is infinite in float32 where an entry is above 1.8e19. Optax
    divides by it, and every update is 0. Such a gradient is divided by its largest
    entry first; any other one is clipped by the same operations as Optax clips it.

    Args:
      max_norm: the largest norm of all updates together.
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: object = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params

        def clip(tree: optax.Updates, norm: Array, scale: Array) -> optax.Updates:
            """Updates, or the tree at the length `max_norm`."""
            keep = norm * scale < max_norm
            return jax.tree.map(
                lambda a, b: jnp.where(keep, a, b / norm.astype(b.dtype) * max_norm),
                updates,
                tree,
            )

        def rescaled() -> optax.Updates:
            leaves = jax.tree.leaves(updates)
            largest = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]
            scale = functools.reduce(jnp.maximum, largest)
            # Not 1: the reciprocal of the largest floats is rounded to 0.
            factor = 8 / scale
            tree = jax.tree.map(lambda a: a * factor.astype(a.dtype), updates)
            return clip(tree, optax.tree.norm(tree), scale / 8)

        norm = optax.tree.norm(updates)
        plain = functools.partial(clip, updates, norm, jnp.ones_like(norm))
        # A condition, not a choice of two results: the second norm is a pass over the
        # gradient.
        return jax.lax.cond(jnp.isfinite(norm), plain, rescaled), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def with_conjugates(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer of what `jax.grad` gives for complex parameters.

    For a loss L of z = x + iy, `jax.grad` gives dL/dx - i dL/dy. The steepest ascent is
    dL/dx + i dL/dy, its conjugate, and that is what the optimizer is given. Real
    gradients stay as they are, and so does the optimizer's state.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        ascent = jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, updates)
        return inner.update(ascent, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def make_optimizer(
    config: Config, num_steps: int, rate: Float[Array, ""] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a config.

    `adam` and `adamw` are Keras's, see `scale_by_adam`.
    `rmsprop` is Keras's: decay 0.9, epsilon inside the root, mean square from 0.
    `rmsprop_tf1` is TensorFlow 1's: epsilon 1e-10 inside the root, mean square from 1.
    All of them take the gradients that `jax.grad` gives, of complex parameters too; a
    complex entry is one parameter, whose mean square is that of its absolute value.

    Args:
      config: the group `optimizer`.
      num_steps: length of the training, for the schedule.
      rate: the learning rate in place of the config's; it may be traced.

    Raises:
      UserError: an unknown name or a value out of range.
    """
    for field in ("learning_rate", "clip_norm", "momentum", "weight_decay", "epsilon"):
        if not 0 <= config[field] < math.inf:
            raise UserError(
                f"optimizer.{field}={config[field]} must be finite and at least 0"
            )
    for field, names in (
        ("momentum", ("rmsprop", "rmsprop_tf1", "sgd")),
        ("weight_decay", ("adamw",)),
        ("epsilon", ("adam", "adamw", "rmsprop")),
    ):
        default = base_config().optimizer[field]
        if config[field] != default and config.name not in names:
            raise UserError(
                f"optimizer.{field}={config[field]} is nothing for {config.name}: set "
                f"it to {default}, or optimizer.name to one of {', '.join(names)}"
            )
    schedule = learning_rate(config, num_steps, rate)
    momentum = config.momentum or None
    makers = {
        "adam": lambda: optax.chain(
            scale_by_adam(config.epsilon), optax.scale_by_learning_rate(schedule)
        ),
        "adamw": lambda: optax.chain(
            scale_by_adam(config.epsilon),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(schedule),
        ),
        "rmsprop": lambda: optax.rmsprop(
            schedule, decay=0.9, eps=config.epsilon, momentum=momentum
        ),
        "rmsprop_tf1": lambda: optax.rmsprop(
            schedule, decay=0.9, eps=1e-10, initial_scale=1.0, momentum=momentum
        ),
        "sgd": lambda: optax.sgd(schedule, momentum=momentum),
    }
    if config.name not in makers:
        raise UserError(
            f"unknown optimizer.name {config.name!r}: choose one of {', '.join(makers)}"
        )
    optimizer = makers[config.name]()
    if config.clip_norm:
        optimizer = optax.chain(clip_by_global_norm(config.clip_norm), optimizer)
    if config.skip_nonfinite < 0:
        raise UserError(
            f"optimizer.skip_nonfinite={config.skip_nonfinite} must be at least 0"
        )
    if config.skip_nonfinite:
        optimizer = optax.apply_if_finite(optimizer, config.skip_nonfinite)
    return with_conjugates(optimizer)
