"""The pure steps of training and evaluation; `lstm_jax.training` compiles them.

A batch is a pure function of the seed and the step: its bucket and its place there
follow from the epoch's schedule, its examples from the epoch's order of that bucket.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.nested import check_nested
from lstm_jax.optimizers import make_optimizer
from lstm_jax.sharding import (
    Rows,
    divides,
    param_specs,
    replicate,
    row_specs,
    split_params,
    split_rows,
)
from lstm_jax.tasks.task import Examples, Sums, Task, size_of

# Batches of one bucket that follow each other. They are one dispatch, and a dispatch
# costs: its memory is zeroed anew and the bucket's order drawn again, on 2 cores a
# third of a step of 139 words at a time (`imdb_fast`).
RUN = 4


class TrainState(NamedTuple):
    """All that a step changes; what a checkpoint holds.

    Attributes:
      step: number of updates done.
      params: the parameters.
      opt_state: the optimizer's state.
      sums: of the metrics since the last row of `metrics.jsonl`.
      average: the moving average of the parameters, () without one.
      carry: what the last batch handed on, () for most tasks.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    sums: Sums
    average: Any
    carry: PyTree


class Keys(NamedTuple):
    """Where the randomness of a run comes from; all of it follows from the seed."""

    init: PRNGKeyArray
    order: PRNGKeyArray
    noise: PRNGKeyArray


class Stepping(NamedTuple):
    """What all steps of a run have in common.

    Attributes:
      task: what is trained.
      optimizer: how.
      batch_size: examples a step.
      ema: decay of the moving average of the parameters; 0: there is none.
      skip: updates in a row that may be skipped where a gradient is not finite; with
        them the optimizer is an `optax.apply_if_finite`.
    """

    task: Task
    optimizer: optax.GradientTransformation
    batch_size: int
    ema: float = 0.0
    skip: int = 0


def make_stepping(
    config: Config, task: Task, learning_rate: Float[Array, ""] | None = None
) -> Stepping:
    """What a config says of the steps; `learning_rate` as of `make_optimizer`."""
    return Stepping(
        task,
        make_optimizer(config.optimizer, count_steps(config, task), learning_rate),
        config.batch_size,
        config.optimizer.ema,
        config.optimizer.skip_nonfinite,
    )


def make_keys(seed: int) -> Keys:
    """The keys of a run."""
    return Keys(*jax.random.split(jax.random.key(seed), 3))


def init_state(stepping: Stepping, keys: Keys) -> TrainState:
    """The state before the first step.

    Raises:
      UserError: the parameters are no nested dict of arrays, or Orbax would save two
        arrays under one name.
    """
    task = stepping.task
    params: Any = task.init(keys.init)
    try:
        check_nested(params)
    except ValueError as error:  # they would not come back from a checkpoint
        raise UserError(f"these parameters cannot be saved: {error}") from None
    carry = task.carry(stepping.batch_size)

    def sums_of(params: Params, examples: Examples, carry: PyTree) -> Sums:
        first = jnp.int32(0)
        return eval_step(task, stepping.batch_size, params, examples, first, carry)[0]

    # For the names of the metrics.
    sums = jax.eval_shape(sums_of, params, task.examples[0], carry)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=stepping.optimizer.init(params),
        sums=jax.tree.map(jnp.zeros_like, sums),
        average=jax.tree.map(jnp.copy, params) if stepping.ema else (),
        carry=carry,
    )
    seen: set[str] = set()
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        # As Orbax names it: both of {"a.b": x, "a": {"b": y}} would come back as y.
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in seen:
            raise UserError(
                f"a checkpoint has one place for two arrays, {name}: leave the dot out "
                "of a name"
            )
        seen.add(name)
    return state


def predicting_params(state: TrainState) -> Params:
    """The parameters that are evaluated and predict: the average, if there is one."""
    return state.average if state.average != () else state.params


def batches_of(size: int, batch_size: int) -> int:
    """Number of batches of a bucket; the last one may be padded."""
    return -(-size // batch_size)


def steps_per_epoch(task: Task, batch_size: int) -> int:
    """Number of batches of all buckets."""
    if task.order is not None:
        return batches_of(len(task.order), batch_size)
    return sum(batches_of(size_of(bucket), batch_size) for bucket in task.examples)


def count_steps(config: Config, task: Task) -> int:
    """How many steps a config's run has."""
    epoch = steps_per_epoch(task, config.batch_size)
    return config.num_steps or config.num_epochs * epoch


def schedule(
    stepping: Stepping, keys: Keys, epoch: Int[Array, ""]
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """For each step of an epoch its bucket, and the batch's number in that bucket.

    The order is random, in runs of `RUN` batches of one bucket.
    """
    task, batch_size = stepping.task, stepping.batch_size
    if len(task.examples) == 1:
        numbers = jnp.arange(steps_per_epoch(task, batch_size))
        return jnp.zeros_like(numbers), numbers
    counts = [batches_of(size_of(bucket), batch_size) for bucket in task.examples]
    runs = [
        (bucket, min(RUN, count - first))
        for bucket, count in enumerate(counts)
        for first in range(0, count, RUN)
    ]
    key = jax.random.fold_in(keys.order, epoch)
    chosen, sizes = jax.random.permutation(key, jnp.array(runs)).T
    chosen = jnp.repeat(chosen, sizes, total_repeat_length=sum(counts))
    before = jnp.cumsum(chosen[:, None] == jnp.arange(len(counts)), axis=0) - 1
    return chosen, jnp.take_along_axis(before, chosen[:, None], axis=1)[:, 0]


def epoch_order(
    task: Task,
    keys: Keys,
    epoch: Int[Array, ""],
    bucket: Int[Array, ""],
    size: int,
) -> Int[Array, " order"]:
    """In which order an epoch visits the examples of a bucket."""
    if task.order is not None:
        return jnp.asarray(task.order)
    key = jax.random.fold_in(jax.random.fold_in(keys.order, epoch), bucket)
    return jax.random.permutation(key, size)


def train_step(
    stepping: Stepping,
    keys: Keys,
    state: TrainState,
    batch: Examples,
    weight: Float[Array, " B"],
) -> TrainState:
    """One update on a batch."""
    key = jax.random.fold_in(keys.noise, state.step)

    sharded = divides(stepping.batch_size)

    def loss(params: Params) -> tuple[Float[Array, ""], tuple[Sums, PyTree]]:
        sums, carry = stepping.task.loss(params, batch, weight, key, state.carry)
        return sums["loss"] / (1 if sharded else sums["count"]), (sums, carry)

    gradient, (sums, carry) = jax.grad(loss, has_aux=True)(state.params)
    if sharded:
        # The backward pass of a mean would wait for every device's count: gradients
        # and counts are one sum over devices, divided at the end. On one device the
        # division of all gradients took 7 % of a step of `fable_tf1`.
        gradient = jax.tree.map(lambda g: g / sums["count"], gradient)
    updates, opt_state = stepping.optimizer.update(
        gradient, state.opt_state, state.params
    )
    if stepping.skip:
        # What is skipped counts for nothing; beyond the limit its loss ends the run.
        assert isinstance(opt_state, optax.ApplyIfFiniteState)
        used = opt_state.last_finite | (opt_state.notfinite_count > stepping.skip)
        sums = jax.tree.map(lambda a: jnp.where(used, a, 0), sums)
        carry = jax.tree.map(lambda a, b: jnp.where(used, a, b), carry, state.carry)
    params: Any = optax.apply_updates(state.params, updates)
    average = state.average
    if stepping.ema:
        # A short memory at first, or the average would long remember its beginning.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(stepping.ema, (1 + step) / (10 + step))
        average = optax.incremental_update(params, average, 1 - decay)
    return TrainState(
        step=state.step + 1,
        params=split_params(params),
        opt_state=split_params(opt_state),
        sums=replicate(jax.tree.map(jnp.add, state.sums, sums)),
        average=split_params(average),
        carry=split_rows(carry),
    )


def state_specs(state: TrainState) -> TrainState:
    """How a state is divided over the devices of the context."""
    none: Any = Rows().none
    return TrainState(
        step=none,
        params=param_specs(state.params),
        opt_state=param_specs(state.opt_state),
        sums=jax.tree.map(lambda _: none, state.sums),
        average=param_specs(state.average),
        carry=row_specs(state.carry),
    )


def train_steps(
    stepping: Stepping,
    keys: Keys,
    state: TrainState,
    examples: Examples,
    bucket: Int[Array, ""],
    count: Int[Array, ""],
) -> TrainState:
    """`count` updates in one dispatch, on batches of one bucket.

    It ends after a step whose loss is not finite, as `state.step` tells: the sums are
    not finite from then on.

    The count is an argument of the compiled program, not a part of it: any number of
    steps runs the same code, and so gives the same bits, however it is divided.
    """
    per_epoch = steps_per_epoch(stepping.task, stepping.batch_size)
    size = size_of(examples)

    def goes_on(
        until: Int[Array, ""], carried: tuple[Int[Array, ""], TrainState]
    ) -> Bool[Array, ""]:
        done, state = carried
        return (done < until) & jnp.isfinite(state.sums["loss"])

    # A loop in a loop: in a sweep by `jax.vmap` the branches of a condition would all
    # be computed, and so an epoch's order at every step.
    def rest_of_epoch(carried: Any) -> Any:
        done, state = carried
        plan = make_plan(stepping, keys, state.step, bucket, size)
        until = jnp.minimum(count, done + per_epoch - state.step % per_epoch)

        def body(carried: Any) -> Any:
            done, state = carried
            chosen, weight = take_indices(stepping, plan, state.step)
            batch = split_rows(jax.tree.map(lambda a: a[chosen], examples))
            state = begin_epoch(stepping, state)
            return done + 1, train_step(stepping, keys, state, batch, weight)

        return jax.lax.while_loop(functools.partial(goes_on, until), body, carried)

    carried = jnp.zeros_like(count), state
    return jax.lax.while_loop(
        functools.partial(goes_on, count), rest_of_epoch, carried
    )[1]


def make_plan(
    stepping: Stepping,
    keys: Keys,
    step: Int[Array, ""],
    bucket: Int[Array, ""],
    size: int,
) -> tuple[Int[Array, " order"], Int[Array, " S"]]:
    """The order of a bucket in the step's epoch, and each step's number in its own."""
    epoch = step // steps_per_epoch(stepping.task, stepping.batch_size)
    order = epoch_order(stepping.task, keys, epoch, bucket, size)
    return order, schedule(stepping, keys, epoch)[1]


def take_indices(
    stepping: Stepping,
    plan: tuple[Int[Array, " order"], Int[Array, " S"]],
    step: Int[Array, ""],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The examples of a step's batch, and their weights."""
    order, numbers = plan
    number = numbers[step % steps_per_epoch(stepping.task, stepping.batch_size)]
    return batch_indices(order, number, stepping.batch_size)


def begin_epoch(stepping: Stepping, state: TrainState) -> TrainState:
    """The state before a step: where an epoch begins, its carry is new."""
    task, batch_size = stepping.task, stepping.batch_size
    begins = state.step % steps_per_epoch(task, batch_size) == 0
    anew = task.carry(batch_size)
    carry = jax.tree.map(lambda a, b: jnp.where(begins, a, b), anew, state.carry)
    return state._replace(carry=carry)


def batch_indices(
    order: Int[Array, " order"], number: Int[Array, ""], batch_size: int
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The examples of a batch, and their weights: 0 for what pads the last one."""
    places = number * batch_size + jnp.arange(batch_size)
    chosen = order[jnp.minimum(places, order.shape[0] - 1)]
    return chosen, split_rows((places < order.shape[0]).astype(jnp.float32))


def take_batch(
    examples: Examples,
    order: Int[Array, " order"],
    number: Int[Array, ""],
    batch_size: int,
) -> tuple[Examples, Float[Array, " B"]]:
    """A batch and its weights, as of `batch_indices`."""
    chosen, weight = batch_indices(order, number, batch_size)
    return split_rows(jax.tree.map(lambda a: a[chosen], examples)), weight


def is_finite(state: TrainState) -> Bool[Array, ""]:
    """Return whether losses, parameters and the optimizer's state are finite.

    The losses since the last row. An optimizer's second moment that has overflowed
    divides every later update by infinity.
    """
    leaves = jax.tree.leaves((state.params, state.opt_state))
    finite = [jnp.all(jnp.isfinite(a)) for a in leaves]
    return jnp.stack([jnp.isfinite(state.sums["loss"]), *finite]).all()


def begin_row(state: TrainState) -> tuple[Sums, UInt32[Array, " L"]]:
    """Return zeros for the sums of the next row, and checksums of the parameters."""
    zeros = jax.tree.map(jnp.zeros_like, state.sums)
    return zeros, checksums(state.params)


def checksums(params: Params) -> UInt32[Array, " L"]:
    """Return a checksum of each array of the parameters, of 32 bits."""

    def checksum(array: Array) -> UInt32[Array, ""]:
        if jnp.iscomplexobj(array):
            array = jnp.stack([array.real, array.imag])
        bits = jax.lax.bitcast_convert_type(
            array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")
        )
        if bits.dtype == jnp.uint64:
            bits = bits ^ (bits >> 32) * 31
        # Each entry's factor is odd: no change of an entry is multiplied away. Axis by
        # axis: an array that is divided over devices stays so.
        factor, stride = jnp.ones(bits.shape, jnp.uint32), 2
        for axis in reversed(range(bits.ndim)):
            place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            factor += stride % 2**32 * place
            stride *= bits.shape[axis]
        return jnp.sum(bits.astype(jnp.uint32) * factor, dtype=jnp.uint32)

    return jnp.stack([checksum(array) for array in jax.tree.leaves(params)])


def has_gradient(
    stepping: Stepping, keys: Keys, state: TrainState, examples: Examples
) -> Bool[Array, " L"]:
    """Return whether each array of the parameters has a finite gradient that is not 0.

    It is that of a bucket's first batch.
    """
    task = stepping.task
    order = jnp.arange(size_of(examples))
    batch, weight = take_batch(examples, order, jnp.int32(0), stepping.batch_size)
    key = jax.random.fold_in(keys.noise, state.step)
    gradient = jax.grad(
        lambda params: task.loss(params, batch, weight, key, state.carry)[0]["loss"]
    )(state.params)
    return jnp.stack(
        [
            jnp.any(leaf != 0) & jnp.all(jnp.isfinite(leaf))
            for leaf in jax.tree.leaves(gradient)
        ]
    )


def evaluate(task: Task, batch_size: int, params: Params, examples: Examples) -> Sums:
    """Sums over all examples of a bucket, in their order."""

    def body(carry: PyTree, number: Int[Array, ""]) -> tuple[PyTree, Sums]:
        sums, carry = eval_step(task, batch_size, params, examples, number, carry)
        return carry, sums

    numbers = jnp.arange(batches_of(size_of(examples), batch_size))
    _, sums = jax.lax.scan(body, task.carry(batch_size), numbers)
    return jax.tree.map(lambda a: jnp.sum(a, 0), sums)


def eval_step(
    task: Task,
    batch_size: int,
    params: Params,
    examples: Examples,
    number: Int[Array, ""],
    carry: PyTree,
) -> tuple[Sums, PyTree]:
    """Sums over a batch of a bucket, in the order of its examples; and the carry."""
    order = jnp.arange(size_of(examples))
    batch, weight = take_batch(examples, order, number, batch_size)
    return task.loss(params, batch, weight, None, carry)


def next_example(
    stepping: Stepping, keys: Keys, step: Int[Array, ""], examples: Examples
) -> Examples:
    """The first example of the batch that comes next, of a task with one bucket."""
    task, batch_size = stepping.task, stepping.batch_size
    epoch, number = jnp.divmod(step, steps_per_epoch(task, batch_size))
    order = epoch_order(task, keys, epoch, jnp.int32(0), size_of(examples))
    batch, _ = take_batch(examples, order, number, batch_size)
    return jax.tree.map(lambda a: a[0], batch)


def total(sums: list[Sums]) -> Sums:
    """The sum over buckets."""
    return jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *sums)
