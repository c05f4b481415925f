"""What the engine does with a layer, and how far that is from the hardware's limit."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from lstm_jax import layout, sharding
from lstm_jax.cells import Cell
from lstm_jax.layers import Recurrent
from lstm_jax.schedule import schedule_for
from lstm_jax.tasks.task import Task, longest
from lstm_jax.unroll import Implementation, unroll


class Call(NamedTuple):
    """A call of `lstm_jax.unroll`, without its values.

    Attributes:
      name: of the layer.
      cell: the cell.
      batch: rows.
      time: steps.
      features: numbers in a step's input.
      reverse: as in `unroll`.
      masked: some steps are not valid.
      resets: some steps begin a sequence.
      noisy: the cell draws noise.
      implementation: as in `unroll`.
    """

    name: str
    cell: Cell
    batch: int
    time: int
    features: int
    reverse: bool = False
    masked: bool = False
    resets: bool = False
    noisy: bool = False
    implementation: Implementation = "auto"


def calls_of(task: Task, batch_size: int) -> list[Call]:
    """The recurrent layers of a task's training step, on its longest batch."""
    found = []

    def record(run: Any, args: Any, options: Any, context: Any) -> Any:
        layer = context.module
        if isinstance(layer, Recurrent) and context.method_name == "__call__":
            masks = (options.get("lengths"), options.get("mask"))
            found.append(
                Call(
                    "/".join(layer.path),
                    layer.cell,
                    *args[0].shape,
                    reverse=layer.reverse,
                    masked=any(mask is not None for mask in masks),
                    resets=options.get("resets") is not None,
                    noisy=layer.cell.noise is not None,
                    implementation=layer.implementation,
                )
            )
        return run(*args, **options)

    def shape(a: Any) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype)

    def loss(key: Any, examples: Any, weight: Any) -> Any:
        params = task.init(key)
        found.clear()  # what initialising has run
        return task.loss(params, examples, weight, key, task.carry(batch_size))

    examples = longest(task.examples)
    weight = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(loss, jax.random.key(0), jax.tree.map(shape, examples), weight)
    return found


def explain_task(task: Task, batch_size: int) -> Iterator[str]:
    """What `explain` says of each recurrent layer of a task, as it is measured."""
    peak = product_peak()
    yield f"a large float32 product runs at {peak / 1e9:.3g} GFLOP/s"
    for call in calls_of(task, batch_size):
        yield explain(call, peak)


def explain(call: Call, peak: float) -> str:
    """Which path a call takes and why, what it computes, saves and reaches.

    Runs it on random numbers, on the devices of the context.

    Args:
      call: the call.
      peak: operations a second that the devices reach, as `product_peak` measures it;
        the floor is what the products would take at that speed.
    """
    forward, training, saved = programs(call)
    plain = programs(call._replace(implementation="autodiff"))
    arguments = arguments_of(call)
    lines = [
        f"{call.name}: {call.batch} rows, {call.time} steps, {call.features} features",
        f"  path      {path(call).text}",
        f"  saved     {saved / 1e6:.3g} MB for the backward pass; "
        f'{plain[2] / 1e6:.3g} MB with implementation="autodiff"',
    ]
    # What a kernel computes is not in the program that calls it.
    one_kernel = call.implementation in ("cudnn", "pallas")
    counted = plain[:2] if one_kernel else (forward, training)
    for name, program, count in (
        ("forward ", forward, counted[0]),
        ("training", training, counted[1]),
    ):
        found = _products(jax.make_jaxpr(count)(*arguments).jaxpr)
        operations = sum(size * times for size, times in found)
        operations *= sharding.shards(call.batch)
        a_step = sum(times for _, times in found) / call.time
        seconds = measure(jax.jit(program), arguments)
        share = operations / peak / seconds
        how = "in a kernel" if one_kernel else f"in {a_step:.3g} products a step"
        lines.append(
            f"  {name}  {1000 * seconds:.3g} ms for {operations / 1e9:.3g} GFLOP "
            f"{how}: {share:.0%} of the floor"
        )
    return "\n".join(lines)


def product_peak() -> float:
    """Operations a second of a large float32 product on the devices of the context."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jax.random.normal(jax.random.key(0), (size, size))
    mesh = jax.sharding.get_abstract_mesh()
    rows = size - size % max(mesh.size, 1)  # as many for each device
    operands = (sharding.put_rows(square[:rows]), sharding.put(square))
    return 2 * rows * size**2 / measure(jax.jit(jnp.matmul), operands, best=True)


def measure(
    program: Callable[..., Any], arguments: tuple[Any, ...], *, best: bool = False
) -> float:
    """Median (or least) seconds of five runs after a first one."""
    jax.block_until_ready(program(*arguments))
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - begun)
    return min(seconds) if best else float(np.median(seconds))


def arguments_of(call: Call) -> tuple[Any, ...]:
    """Parameters and random inputs of a call, where its devices want them."""
    key = jax.random.key(0)
    xs = jax.random.normal(key, (call.batch, call.time, call.features))
    return sharding.put(call.cell.init(key, call.features)), sharding.put_rows(xs)


def programs(call: Call) -> tuple[Callable[..., Any], Callable[..., Any], int]:
    """The layer, its gradient, and the bytes that its forward pass saves for it."""
    lengths = jnp.full(call.batch, call.time) if call.masked else None
    resets = jnp.zeros((call.batch, call.time), bool) if call.resets else None

    def forward(params: Any, xs: Any) -> Any:
        return unroll(
            call.cell,
            params,
            xs,
            lengths=lengths,
            resets=resets,
            reverse=call.reverse,
            key=jax.random.key(0) if call.noisy else None,
            implementation=call.implementation,
        )[1]

    def pulled(params: Any, xs: Any) -> Any:
        return jax.vjp(forward, params, xs)[1]

    def training(params: Any, xs: Any) -> Any:
        ys, pull = jax.vjp(forward, params, xs)
        return pull(ys)

    arguments = arguments_of(call)
    saved = jax.tree.leaves(jax.eval_shape(pulled, *arguments))
    given = jax.tree.leaves(arguments)  # is there anyway, and saved once
    size = sum(a.size * a.dtype.itemsize for a in saved) - sum(a.nbytes for a in given)
    return forward, training, size


class Path(NamedTuple):
    """How a call is run.

    Attributes:
      fast: jax differentiates through no loop over the steps.
      text: which implementation it is, and why.
    """

    fast: bool
    text: str


def path(call: Call) -> Path:
    """Which implementation runs a call on the devices of the context, and why."""
    shards = sharding.shards(call.batch)
    where = f"{jax.default_backend()} device{'s' * (shards > 1)}"
    where = f"on {shards} {where}"
    if shards > 1:
        where += f" with {call.batch // shards} rows each"
    if call.implementation not in ("auto", "fused"):
        asked = f"{call.implementation}, asked for, {where}"
        return Path(call.implementation != "autodiff", asked)
    if call.cell.unroll is not None:
        return _own_path(call, where)
    if call.cell.fused is None:
        return Path(
            False,
            f"autodiff, {where}: the cell was not made by gated, and is differentiated "
            "through the loop",
        )
    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: call.cell.init(key, call.features), key)
    each, noise = call.batch // shards, None
    if call.noisy and call.cell.noise is not None:
        draw = call.cell.noise
        noise = jax.eval_shape(lambda k, p: draw(k, p, each, call.time), key, params)
        time_first = jax.eval_shape(
            lambda step: jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), step), noise.step
        )
        noise = noise._replace(step=time_first)
    carry = jax.eval_shape(lambda p: call.cell.initial_carry(p, each), params)
    schedule = schedule_for(
        jax.default_backend(), call.cell.fused, params, carry, each, call.time, noise
    )
    rows = "first" if schedule.rows == layout.FIRST else "last"
    hoisted = "of all steps before the loop" if schedule.hoist else "in each step"
    return Path(
        True,
        f"fused, {where}: the cell was made by gated\n"
        f"  layout    rows {rows} in a step's arrays, product of the inputs {hoisted}, "
        f"weight gradients in chunks of {schedule.chunk} steps, loops unrolled by "
        f"{schedule.unroll}: {schedule.why}",
    )


def _own_path(call: Call, where: str) -> Path:
    """Of a cell with a sequence function of its own: what loops it has."""
    program = jax.make_jaxpr(programs(call)[0])(*arguments_of(call))
    loops = _loops(program.jaxpr)
    own = "the cell's own sequence function"
    if not loops:
        return Path(True, f"all steps at once, {where}: {own} has no loop over them")
    plain = loops.count(False)
    if plain:
        return Path(
            False,
            f"autodiff, {where}: {own} has {len(loops)} loop{'s' * (len(loops) > 1)}, "
            f"of which jax differentiates through {plain}, of cells that were not made "
            "by gated",
        )
    each = f"each of the {len(loops)} loops" if len(loops) > 1 else "the loop"
    return Path(True, f"fused, {where}: {each} of {own} is of a cell made by gated")


def _loops(jaxpr: Jaxpr, *, derived: bool = False) -> list[bool]:
    """Of each outermost loop of a program, whether it has a derivative of its own."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("scan", "while"):
            found.append(derived)
            continue
        own = derived or name.startswith("custom_vjp_call")
        inside = [
            own_loop
            for inner in _inner(equation)
            for own_loop in _loops(inner, derived=own)
        ]
        # The chunks of one fused loop are one.
        found += inside[:1] if own and not derived else inside
    return found


def _inner(equation: Any) -> list[Jaxpr]:
    """The programs that an equation runs."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")
    )
    programs = [getattr(inner, "jaxpr", inner) for inner in leaves]
    return [inner for inner in programs if hasattr(inner, "eqns")]


def _products(jaxpr: Jaxpr, times: int = 1) -> list[tuple[int, int]]:
    """Operations of each product of a program, and how often it is run."""
    found = []
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if not any(id(variable) in needed for variable in equation.outvars):
            continue  # nothing reads it: it is not compiled
        needed |= {id(variable) for variable in equation.invars}
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left: Any = equation.invars[0].aval
            result: Any = equation.outvars[0].aval
            depth = math.prod(left.shape[i] for i in contracted)
            found.append((2 * depth * result.size, times))
        runs = times * equation.params.get("length", 1)
        for inner in _inner(equation):
            found += _products(inner, runs)
    return found
