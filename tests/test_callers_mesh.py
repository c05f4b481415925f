"""`unroll` in programs with a mesh of their own gives what it gives on one device."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import CELLS, noise_key, random_carry, random_params, random_xs
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from reference import assert_close, weighted_sum
from schedules import ROWS_FIRST, ROWS_LAST, scheduled
from test_sharding import collectives_in_loops

import lstm_jax as lj
from lstm_jax import combinators, layers

BATCH, TIME, CHUNK = 4, 7, 3
COMBINED = {
    "min_gru": lj.min_gru(4),
    "min_lstm": lj.min_lstm(4),
    "stack": combinators.stack(
        combinators.drop_connect(lj.lstm(4), 0.4), combinators.zoneout(lj.gru(3), 0.3)
    ),
    "norm": combinators.layer_norm(lj.lstm(4)),
    "learned": combinators.learned_initial_carry(lj.gru(4)),
    "project": combinators.project(lj.lstm(4), 2),
    "residual": combinators.residual(lj.lstm(3)),
}
# By name the arrays with rows, and the other options.
KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": (("xs",), {}),
    "lengths": (("xs", "carry", "lengths", "resets"), {"return_carries": True}),
    "mask": (("xs", "mask", "resets"), {"reverse": True, "return_carries": True}),
}


def make_mesh(kind: AxisType = AxisType.Explicit) -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("d",), (kind,), devices=jax.devices()[:2])


def square_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), ("d", "m"), devices=jax.devices())


def put(tree: Any, mesh: jax.sharding.Mesh, *axes: Any) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, P(*axes)))


def evaluated(function: Any, *arguments: Any) -> Any:
    """The results of a compiled program, none of whose loops waits for a device."""
    program = jax.jit(function).lower(*arguments).compile()
    assert collectives_in_loops(program.as_text()) == []
    return program(*arguments)


def with_gradients(run: Any) -> Any:
    """What `run` returns, and its gradients by parameters, xs and carry."""

    def loss(params: Any, real: Any, rest: Any) -> Any:
        outputs = run(params, real | rest)
        return weighted_sum(outputs), outputs

    def both(params: Any, rows: Any) -> Any:
        real = {name: rows[name] for name in rows if name in ("xs", "carry")}
        rest = {name: rows[name] for name in rows if name not in real}
        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return gradient(params, real, rest)

    return both


def on_mesh(kind: AxisType, context: bool) -> Callable[..., Any]:
    """Rows are sharded over a mesh, the parameters are anywhere."""

    def place(run: Any, params: Any, rows: Any) -> Any:
        mesh = make_mesh(kind)
        inside: AbstractContextManager[Any] = nullcontext()
        with jax.set_mesh(mesh) if context else inside:
            function = with_gradients(run)
            if kind == AxisType.Auto:  # XLA's to partition
                return jax.jit(function)(params, put(rows, mesh, "d"))
            return evaluated(function, params, put(rows, mesh, "d"))

    return place


def in_shard_map(check_vma: bool) -> Callable[..., Any]:
    def place(run: Any, params: Any, rows: Any) -> Any:
        mesh = make_mesh()
        mapped = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(), P("d")),
            out_specs=P("d"),
            check_vma=check_vma,
        )
        return evaluated(with_gradients(mapped), params, put(rows, mesh, "d"))

    return place


def in_halves(mapped: Any, sharding: Any = None) -> Any:
    def run(params: Any, rows: Any) -> Any:
        def shaped(tree: Any, *batch: int, drop: int) -> Any:
            return jax.tree.map(
                lambda a: jax.lax.reshape(
                    a, (*batch, *a.shape[drop:]), out_sharding=sharding
                ),
                tree,
            )

        halves = shaped(rows, 2, BATCH // 2, drop=1)
        return shaped(mapped(params, halves), BATCH, drop=2)

    return run


def in_pmap(run: Any, params: Any, rows: Any) -> Any:
    mapped = jax.pmap(run, in_axes=(None, 0), devices=jax.devices()[:2])
    return with_gradients(in_halves(mapped))(params, rows)


def in_vmap(run: Any, params: Any, rows: Any) -> Any:
    mapped = jax.vmap(run, in_axes=(None, 0))
    return jax.jit(with_gradients(in_halves(mapped)))(params, rows)


def in_sharded_vmap(run: Any, params: Any, rows: Any) -> Any:
    mapped = in_halves(jax.vmap(run, in_axes=(None, 0)), P("d"))
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        return jax.jit(with_gradients(mapped))(params, put(rows, mesh, "d"))


def alone(run: Any, params: Any, rows: Any) -> Any:
    return jax.jit(with_gradients(run))(params, rows)


def checking_leaks(run: Any, params: Any, rows: Any) -> Any:
    with jax.checking_leaks():
        return alone(run, params, rows)


PLACES = {
    "explicit": on_mesh(AxisType.Explicit, context=False),
    "explicit_context": on_mesh(AxisType.Explicit, context=True),
    "auto": on_mesh(AxisType.Auto, context=False),
    "auto_context": on_mesh(AxisType.Auto, context=True),
    "shard_map": in_shard_map(check_vma=True),
    "unchecked": in_shard_map(check_vma=False),
    "pmap": in_pmap,
    "vmap": in_vmap,
    "sharded_vmap": in_sharded_vmap,
    "checking_leaks": checking_leaks,
}
# Of the noise of half a batch the values are others.
OF_ALL_ROWS = ("explicit", "explicit_context", "auto", "auto_context")

DEFAULT = [
    ("explicit", "all_noise", "auto", "lengths"),
    ("shard_map", "learned_initial", "auto", "mask"),
    ("shard_map", "gru_before", "autodiff", "lengths"),
]
# In every place each other cell, in turn all ways and kinds.
WAYS = [(way, kind) for way in ("auto", "autodiff") for kind in KINDS]
NAMES = ("lstm", "gru", "simple_rnn", "gru_before", "min_gru", "stack")
MORE = [
    *(
        (where, name, *WAYS[(i + j // 2) % len(WAYS)])
        for i, where in enumerate(PLACES)
        for j, name in enumerate(NAMES)
        if (i + j) % 2
    ),
    *(
        (("explicit", "shard_map")[j % 2], name, "auto", "mask")
        for j, name in enumerate(CELLS | COMBINED)
    ),
    *(
        (where, "min_gru", "fused", "lengths")
        for where in ("explicit", "shard_map", "unchecked")
    ),
]


@functools.cache
def case(name: str, implementation: Any, kind: str, noisy: bool) -> Any:
    """A function of parameters and rows, both, and what it gives on one device."""
    cell = (CELLS | COMBINED)[name]
    params, rng = random_params(cell), np.random.default_rng(5)
    all_rows = {
        "xs": random_xs(BATCH, TIME),
        "carry": random_carry(cell, params, BATCH),
        "lengths": jnp.array([7, 0, 3, 5]),
        "mask": jnp.asarray(rng.random((BATCH, TIME)) < 0.7),
        "resets": jnp.asarray(rng.random((BATCH, TIME)) < 0.3),
    }
    names, options = KINDS[kind]
    rows = {name: all_rows[name] for name in names}
    key = noise_key(0) if noisy else None

    def run(params: Any, rows: Any) -> Any:
        return lj.unroll(
            cell, params, **rows, **options, key=key, implementation=implementation
        )

    return run, params, rows, alone(run, params, rows)


@pytest.mark.usefixtures("strict", "x64")
@pytest.mark.parametrize(
    ("where", "name", "implementation", "kind"),
    [
        *DEFAULT,
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in dict.fromkeys(MORE)
            if each not in DEFAULT
        ),
    ],
)
def test_equals_one_device(
    where: str, name: str, implementation: str, kind: str
) -> None:
    """Values and gradients, of chunks in either layout."""
    noisy = where in OF_ALL_ROWS
    run, params, rows, expected = case(name, implementation, kind, noisy)
    schedule = ROWS_LAST if kind == "mask" else ROWS_FIRST
    with scheduled(schedule._replace(chunk=CHUNK)):
        assert_close(PLACES[where](run, params, rows), expected)


@pytest.mark.usefixtures("strict", "x64")
def test_gradients_inside_of_shard_map() -> None:
    """Of parameters that all devices share, and of each device's own."""
    cell = lj.simple_rnn(4)
    params, xs = random_params(cell), random_xs(BATCH, TIME)

    def loss(params: Any, xs: Any) -> Any:
        return jnp.sum(jnp.square(lj.unroll(cell, params, xs)[1]))

    def gradients(params: Any, xs: Any) -> Any:
        shared = jax.grad(loss)(params, xs)
        own = jax.grad(loss)(jax.lax.pcast(params, ("d",), to="varying"), xs)
        return shared, jax.lax.psum(own, "d")

    mapped = jax.shard_map(
        gradients, mesh=make_mesh(), in_specs=(P(), P("d")), out_specs=P()
    )
    shared, own = evaluated(mapped, params, put(xs, make_mesh(), "d"))
    expected = jax.jit(jax.grad(loss))(params, xs)
    assert_close(shared, expected)
    assert_close(own, expected)


def test_the_fused_path_leaks_no_tracer() -> None:
    cell = lj.gru(3)
    params, xs = random_params(cell), jnp.ones((2, 3, 3))
    with jax.checking_leaks():
        jax.make_jaxpr(jax.grad(lambda p: jnp.sum(lj.unroll(cell, p, xs)[1])))(params)


def outputs_and_gradients(cell: lj.Cell, **options: Any) -> Any:
    return with_gradients(lambda p, rows: lj.unroll(cell, p, **rows, **options))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_types_are_those_of_what_is_sharded() -> None:
    """Gradients are sharded as parameters are, outputs and carries as rows."""
    cell, mesh = lj.lstm(4), square_mesh()
    params, rows = random_params(cell), {"xs": random_xs(BATCH, TIME)}
    run = outputs_and_gradients(cell)
    expected = jax.jit(run)(params, rows)
    specs = {
        "kernel": P(None, "m"),
        "recurrent_kernel": P(("d", "m"), None),
        "bias": P("m"),
    }
    divided = {name: put(params[name], mesh, *specs[name]) for name in params}
    sharded = {"xs": put(rows["xs"], mesh, "d")}
    got = evaluated(run, divided, sharded)
    assert_close(got, expected)
    (gradient, of_rows), outputs = got
    assert {name: g.sharding.spec for name, g in gradient.items()} == specs
    for array in jax.tree.leaves((of_rows, outputs)):
        assert array.sharding.spec[0] == "d"
    # Of one sharded over both axes, and where but the parameters are.
    both = {"xs": put(rows["xs"], mesh, ("d", "m"))}
    assert_close(evaluated(run, params, both), expected)
    assert_close(evaluated(run, divided, rows), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", ["fused", "autodiff"])
@pytest.mark.parametrize("on_mesh", [False, True])
def test_gradients_of_each_of_several_batches(
    implementation: Any, on_mesh: bool
) -> None:
    """Batches are sharded over one axis, their rows over the other one."""
    cell, mesh = lj.lstm(4), square_mesh()
    params, xs = random_params(cell), random_xs(2 * BATCH, TIME)
    xs = xs.reshape(2, BATCH, *xs.shape[1:])

    def loss(params: Any, xs: Any) -> Any:
        _, ys = lj.unroll(cell, params, xs, implementation=implementation)
        return jnp.sum(jnp.square(ys))

    gradient = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))
    expected = gradient(params, xs)
    with jax.set_mesh(mesh):
        given = put(params, mesh) if on_mesh else params
        assert_close(gradient(given, put(xs, mesh, "m", "d")), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_rows_are_where_the_carry_is() -> None:
    cell = lj.gru(4)
    params, xs = random_params(cell), random_xs(BATCH, TIME)
    carry = random_carry(cell, params, BATCH)
    run = outputs_and_gradients(cell)
    got = evaluated(run, params, {"xs": xs, "carry": put(carry, make_mesh(), "d")})
    assert_close(got, jax.jit(run)(params, {"xs": xs, "carry": carry}))
    assert got[1][1].sharding.spec[0] == "d"


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("context", [False, True])
def test_outside_of_jit(context: bool) -> None:
    cell, mesh = lj.lstm(4), make_mesh()
    params, xs = random_params(cell), random_xs(BATCH, TIME)
    lengths = jnp.array([7, 0, 3, 5])
    expected = lj.unroll(cell, params, xs, lengths=lengths)
    sharded = put(xs, mesh, "d")
    with jax.set_mesh(mesh) if context else nullcontext():
        assert_close(lj.unroll(cell, params, sharded, lengths=lengths), expected)
        # A constant of a program.
        constant = jax.jit(lambda p: lj.unroll(cell, p, sharded, lengths=lengths))
        assert_close(constant(params), expected)
        with pytest.raises(ValueError, match=r"lengths must lie in \[0, 7\]"):
            lj.unroll(cell, params, sharded, lengths=lengths + 1)
    mapped = jax.shard_map(
        lambda params, xs: lj.unroll(cell, params, xs),
        mesh=mesh,
        in_specs=(P(), P("d")),
        out_specs=P("d"),
    )
    assert_close(mapped(params, sharded), lj.unroll(cell, params, xs))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_second_derivatives() -> None:
    cell = lj.simple_rnn(4)
    params, xs = random_params(cell), random_xs(BATCH, TIME)

    def penalty(params: Any, xs: Any) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            return jnp.sum(jnp.square(lj.unroll(cell, params, xs)[1]))

        gradients = jax.grad(loss, argnums=(0, 1))(params, xs)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients))

    run = jax.jit(jax.grad(penalty, argnums=(0, 1)))
    assert_close(run(params, put(xs, make_mesh(), "d")), run(params, xs))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (layers.Recurrent(lj.lstm(4)), {}),
        (layers.Bidirectional(lj.gru(4)), {}),
        (
            layers.Stack((lj.lstm(4), lj.min_gru(3)), bidirectional=True),
            {"last_only": True},
        ),
    ],
)
def test_layers(layer: Any, options: Any, context: bool) -> None:
    mesh, rows = make_mesh(), {"xs": random_xs(BATCH, TIME)}
    rows["lengths"] = jnp.array([7, 0, 3, 5])
    params = layer.init(jax.random.key(0), rows["xs"])

    def apply(params: Any, rows: Any) -> Any:
        return layer.apply(params, rows["xs"], lengths=rows["lengths"], **options)

    run = with_gradients(apply)
    expected = jax.jit(run)(params, rows)
    with jax.set_mesh(mesh) if context else nullcontext():
        got = evaluated(run, params, put(rows, mesh, "d"))
    # Flax's parameters are float32.
    assert_close(got, expected, 1e-5)


@pytest.mark.slow
def test_pallas() -> None:
    cell, mesh = lj.lstm(128), make_mesh()
    params = random_params(cell)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3, 3)), jnp.float32)
    run = outputs_and_gradients(cell, implementation="pallas")
    expected = jax.jit(run)(params, {"xs": xs})
    sharded = {"xs": put(xs, mesh, "d")}
    assert_close(jax.jit(run)(params, sharded), expected, 1e-4)
    mapped = jax.shard_map(
        lambda params, xs: lj.unroll(cell, params, xs, implementation="pallas"),
        mesh=mesh,
        in_specs=(P(), P("d")),
        out_specs=P("d"),
    )
    with pytest.raises(ValueError, match="set check_vma=False"):
        jax.eval_shape(mapped, params, sharded["xs"])
