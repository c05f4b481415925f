"""The members of a sweep on the devices: the steps of `lstm_jax.steps`, of each.

What belongs to members has them along axis 0, which the devices divide. No device
needs anything of another one's members, so nothing is communicated.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, PyTree, UInt32

from lstm_jax import steps
from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.devices import all_devices
from lstm_jax.errors import UserError
from lstm_jax.steps import Keys, Stepping, TrainState
from lstm_jax.tasks.task import Examples, Task

MEMBERS = "lstm_jax_members"  # no name of a user's own axis


# As `lstm_jax.tasks.task.Sums`, of every member.
MemberSums: TypeAlias = dict[str, Float[Array, " M"]]


class Member(NamedTuple):
    """What tells a member of a sweep from the others."""

    seed: int
    learning_rate: float


class SweepState(NamedTuple):
    """All that a sweep's steps change; what its checkpoints hold.

    Attributes:
      members: the state of each member.
      best: the parameters that predict, of each at its best evaluation so far; ()
        where no metric tells which that is.
    """

    members: TrainState
    best: Params | tuple[()]


class Drawn(NamedTuple):
    """What the steps of each member follow from.

    Attributes:
      keys: of its seed.
      learning_rate: its own.
    """

    keys: Keys
    learning_rate: Float[Array, " M"]


class Programs(NamedTuple):
    """What the devices run of a sweep; each compiles once.

    Attributes:
      run: `run(states, drawn, active, examples, count)`: so many steps of each member
        that is active, 1 and not 0.
      measure: `measure(params, examples)`: each member's sums over a split's bucket.
      total: `total(sums)`: the sum over buckets.
      begin_row: `begin_row(states, active)`, as `steps.begin_row`; the sums are zeros
        but for a member that has ended, or whose loss is not finite:
        `steps.train_steps` leaves it as it is from then on.
      has_gradient: `has_gradient(states, drawn, examples)`, as `steps.has_gradient`.
      keep: `keep(best, states, better)`: the parameters that predict, where better.
      is_finite: `is_finite(states)`.
    """

    run: Callable[..., TrainState]
    measure: Callable[[Params, Examples], MemberSums]
    total: Callable[[list[MemberSums]], MemberSums]
    begin_row: Callable[[TrainState, Array], tuple[MemberSums, UInt32[Array, "M L"]]]
    has_gradient: Callable[..., Bool[Array, "M L"]]
    keep: Callable[..., Params]
    is_finite: Callable[[TrainState], Bool[Array, " M"]]


def is_sweep(config: Config) -> bool:
    """Return whether a config has members, however many."""
    return bool(config.sweep.seeds or tuple(config.sweep.learning_rates))


def members_of(config: Config) -> tuple[Member, ...]:
    """The members of a config's sweep, by learning rate and seed; () without one."""
    sweep = config.sweep
    if not is_sweep(config):
        return ()
    rates = tuple(sweep.learning_rates) or (config.optimizer.learning_rate,)
    seeds = range(config.seed, config.seed + max(sweep.seeds, 1))
    return tuple(Member(seed, float(rate)) for rate in rates for seed in seeds)


def make_mesh(count: int, members: int) -> Mesh:
    """The devices that divide the members.

    Args:
      count: of devices; 0: all there are, but no more than members.
      members: how many there are.

    Raises:
      UserError: there are not so many devices.
    """
    devices = all_devices()
    if count > len(devices):
        raise UserError(
            f"devices.count={count} and there are {len(devices)}: ask for fewer, or "
            "0 for as many as there are"
        )
    count = min(count or len(devices), members)
    return jax.make_mesh(
        (count,), (MEMBERS,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def divided() -> NamedSharding:
    """Where arrays with members are: each device has its own."""
    return NamedSharding(jax.sharding.get_mesh(), PartitionSpec(MEMBERS))


def whole() -> NamedSharding:
    """Where arrays are of which every device has all."""
    return NamedSharding(jax.sharding.get_mesh(), PartitionSpec())


def padded(members: tuple[Member, ...]) -> tuple[Member, ...]:
    """As many for each device: the last is there once more, and is never active."""
    missing = -len(members) % jax.sharding.get_mesh().size
    return members + members[-1:] * missing


def draw(members: tuple[Member, ...]) -> Drawn:
    """Keys and learning rates on the devices."""
    keys = [steps.make_keys(member.seed) for member in members]
    rates = jnp.array([member.learning_rate for member in members], jnp.float32)
    drawn = Drawn(jax.tree.map(lambda *keys: jnp.stack(keys), *keys), rates)
    return jax.device_put(drawn, divided())


def each_member(
    function: Callable[..., Any], one_by_one: bool | None = None
) -> Callable[..., Any]:
    """`function(own, shared)` of each member, on the device that has it.

    Args:
      function: of one member's arrays, and those that all share.
      one_by_one: members of a device follow each other; False: they are one `jax.vmap`;
        None: on a processor, where a product of several members' matrices is no faster
        than one at a time, and `jax.vmap` took 1.3 times as long for `fable`.
    """
    if one_by_one is None:
        one_by_one = jax.default_backend() == "cpu"

    def on_device(own: PyTree, shared: PyTree) -> PyTree:
        if one_by_one:
            return lax.map(lambda one: function(one, shared), own)
        return jax.vmap(lambda one: function(one, shared))(own)

    own = PartitionSpec(MEMBERS)
    # Unchecked, as in lstm_jax.sharding.
    return jax.shard_map(
        on_device, in_specs=(own, PartitionSpec()), out_specs=own, check_vma=False
    )


def make_programs(
    task: Task, stepping: Callable[[Any], Stepping], batch_size: int
) -> Programs:
    """The programs of a sweep.

    Args:
      task: what is trained.
      stepping: that of a learning rate, which may be traced.
      batch_size: examples a step.
    """

    def run(own: Any, shared: Any) -> TrainState:
        state, drawn, active = own
        examples, count = shared
        return steps.train_steps(
            stepping(drawn.learning_rate),
            drawn.keys,
            state,
            examples,
            jnp.int32(0),
            count * active,
        )

    def keep(best: Params, states: TrainState, better: Bool[Array, " M"]) -> Params:
        def choose(mine: Array, new: Array) -> Array:
            return jnp.where(jnp.expand_dims(better, range(1, new.ndim)), new, mine)

        return jax.tree.map(choose, best, steps.predicting_params(states))

    def begin_row(own: Any, _: Any) -> tuple[Any, UInt32[Array, " L"]]:
        state, active = own
        zeros, checksums = steps.begin_row(state)
        going = jnp.isfinite(state.sums["loss"]) & (active == 1)
        sums = jax.tree.map(functools.partial(jnp.where, going), zeros, state.sums)
        return sums, checksums

    def has_gradient(own: Any, examples: Examples) -> Bool[Array, " L"]:
        state, drawn = own
        made = stepping(drawn.learning_rate)
        return steps.has_gradient(made, drawn.keys, state, examples)

    every_run = each_member(run)
    measure = each_member(
        lambda params, bucket: steps.evaluate(task, batch_size, params, bucket)
    )
    return Programs(
        run=jax.jit(
            lambda states, drawn, active, examples, count: every_run(
                (states, drawn, active), (examples, count)
            ),
            donate_argnums=0,
        ),
        measure=jax.jit(measure),
        total=jax.jit(jax.vmap(steps.total)),
        begin_row=jax.jit(
            lambda states, active: each_member(begin_row)((states, active), ())
        ),
        has_gradient=jax.jit(
            lambda states, drawn, examples: each_member(has_gradient)(
                (states, drawn), examples
            )
        ),
        keep=jax.jit(keep, donate_argnums=0),
        is_finite=jax.jit(
            lambda states: each_member(lambda state, _: steps.is_finite(state))(
                states, ()
            )
        ),
    )


def init_states(
    stepping: Callable[[Any], Stepping],
    drawn: Drawn,
    begin: Callable[[TrainState], TrainState],
) -> TrainState:
    """Each member's state before its first step, as `begin` changes it."""

    def init(own: Drawn, _: Any) -> TrainState:
        return begin(steps.init_state(stepping(own.learning_rate), own.keys))

    # One by one on every device: initialisers decompose matrices, which jax on the
    # processor does in no batch within a divided program.
    return each_member(init, one_by_one=True)(drawn, ())


def resize(tree: PyTree, count: int) -> PyTree:
    """The first members alone, or the last one again until there are so many."""

    def fit(array: Array) -> Array:
        missing = max(count - array.shape[0], 0)
        return jnp.concatenate([array[:count], *[array[-1:]] * missing])

    return jax.tree.map(fit, tree)


def take(tree: PyTree, number: int) -> PyTree:
    """What belongs to one member."""
    # With "...": of NumPy a number is an array too, as checkpoints need it.
    return jax.tree.map(lambda a: a[number, ...], tree)
