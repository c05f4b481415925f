"""`unroll` on cases that Hypothesis draws: every option, and how they meet.

Ordinarily a few cases, the same every time. To look for new ones, for hours if need be:

    HYPOTHESIS_PROFILE=long pytest -n 0 --hypothesis-show-statistics \
        tests/test_unroll_properties.py
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    CELLS,
    HIDDEN,
    INPUT,
    noise_key,
    random_carry,
    random_params,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import (
    assert_close,
    assert_same_bits,
    outputs_and_gradients,
    weighted_sum,
)
from schedules import LAYOUTS, ROWS_LAST

import lstm_jax as lj
from lstm_jax.cell_grammar import parse_cell
from lstm_jax.combinators import (
    drop_connect,
    layer_norm,
    project,
    residual,
    stack,
    zoneout,
)
from lstm_jax.schedule import Schedule

pytestmark = pytest.mark.usefixtures("strict")

_COMMON = settings(
    deadline=None,  # most of a case's time is compilation
    database=None,  # it would be written into the checkout
    # The fixtures are contexts that all cases may share.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("lstm_jax", _COMMON, max_examples=2, derandomize=True)
settings.register_profile("long", _COMMON, max_examples=400)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "lstm_jax"))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Of thousands of programs, each a few megabytes, none is needed again."""
    yield
    if PROFILE.max_examples > 100:
        jax.clear_caches()


# Sizes that the cells of `example_cells` do not fix.
MAKERS: dict[str, Callable[..., lj.Cell]] = {
    "lstm": lj.lstm,
    "gru": lj.gru,
    "gru_before": functools.partial(lj.gru, reset_after=False),
    "simple_rnn": lj.simple_rnn,
    "peephole": functools.partial(lj.lstm, peephole=True, coupled=True),
    "mgu": lj.mgu,
    # No kink, which differences might straddle.
    "indrnn": functools.partial(lj.indrnn, activation=jnp.tanh),
    "slstm": lj.slstm,
    "min_gru": lj.min_gru,
    "min_lstm": lj.min_lstm,
    "normalized": lambda *a, **k: layer_norm(zoneout(lj.lstm(*a, **k), 0.2)),
    "stacked": lambda *a, **k: stack(
        project(drop_connect(lj.mgu(*a, **k), 0.3), 1), residual(lj.gru(1, **k))
    ),
}


# From cell to cell, nested by chance; `clip` has a kink, and tests of its own.
WRAPPERS = (
    "layer_norm({})",
    "zoneout({}, 0.2)",
    "learned_initial_carry({})",
    "recurrent_dropout({}, 0.3)",
    "drop_connect({}, 0.3)",
)
OUTERMOST = ("{}", "stack({}, residual(gru))", "project({}, 1)")


@functools.cache  # a cell's identity is part of what a compiled program is known by
def make_cell(name: str, hidden: int, dtype: Any = None) -> lj.Cell:
    if "(" in name:
        return parse_cell(name, hidden)
    return MAKERS[name](hidden, dtype=dtype) if name in MAKERS else CELLS[name]


NAMES = tuple(CELLS | MAKERS)
GATED = tuple(name for name in NAMES if make_cell(name, 2).fused is not None)


class Case(NamedTuple):
    """What `unroll` is compiled for, and what it is given."""

    name: str
    hidden: int
    dtype: str  # float32, float64, or bfloat16 operands of float32 parameters
    schedule: Schedule | None  # of the fused path; None: autodiff
    reverse: bool
    xs: Any
    lengths: Any  # None, or as the mask
    mask: Any
    resets: Any
    with_carry: bool
    with_noise: bool

    @property
    def cell(self) -> lj.Cell:
        dtype = jnp.bfloat16 if self.dtype == "bfloat16" else None
        return make_cell(self.name, self.hidden, dtype)

    @property
    def valid(self) -> np.ndarray:
        if self.lengths is not None:
            return np.arange(self.xs.shape[1]) < self.lengths[:, None]
        return np.ones(self.xs.shape[:2], bool) if self.mask is None else self.mask


def is_gated(name: str) -> bool:
    return name in GATED or ("(" in name and not name.startswith(("stack", "project")))


@st.composite
def composites(draw: st.DrawFn, outermost: tuple[str, ...] = OUTERMOST) -> str:
    """Such as "project(zoneout(layer_norm(mgu), 0.2), 1)"."""
    around = draw(st.sampled_from(outermost))
    # Heads are no longer the product that `project` narrows.
    heads = ("block_diagonal(lstm, 2)",) if around != "project({}, 1)" else ()
    name = draw(st.sampled_from(("lstm", "gru", "simple_rnn", "mgu", *heads)))
    wrappers = st.lists(
        st.sampled_from(WRAPPERS), unique=True, min_size=around == "{}", max_size=3
    )
    for wrapper in (*draw(wrappers), around):
        name = wrapper.format(name)
    return name


def schedules() -> st.SearchStrategy[Schedule]:
    return st.builds(
        Schedule._replace,
        st.sampled_from(list(LAYOUTS.values())),
        chunk=st.integers(1, 9),
        unroll=st.integers(1, 3),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = ("float32", "float64", "bfloat16"),
    maskings: tuple[str, ...] = ("none", "lengths", "mask"),
    names: tuple[str, ...] = NAMES,
    outermost: tuple[str, ...] = OUTERMOST,
) -> Case:
    dtype = draw(st.sampled_from(dtypes))
    if dtype == "bfloat16":  # of those with a keyword for the operands' type
        name = draw(st.sampled_from(tuple(MAKERS)))
    else:
        name = draw(composites(outermost) | st.sampled_from(names))
    # Few sizes: each is a compilation. The first of each list is the commonest.
    batch, time = draw(st.sampled_from([3, 2, 1])), draw(st.sampled_from([4, 7, 1]))
    inputs, hidden = INPUT, HIDDEN
    if name not in CELLS:
        inputs = draw(st.sampled_from([INPUT, 1]))
        # A norm of two numbers is a step, on which differences say little.
        hidden = 6 if "(" in name else draw(st.sampled_from([6, 2, 1]))
    steps = hnp.arrays(bool, (batch, time))
    masking = draw(st.sampled_from(maskings))
    lengths = hnp.arrays(np.int32, batch, elements=st.integers(0, time))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Case(
        name=name,
        hidden=hidden,
        dtype=dtype,
        schedule=draw(st.none() | schedules()) if is_gated(name) else None,
        reverse=draw(st.booleans()),
        xs=rng.normal(size=(batch, time, inputs)),
        lengths=draw(lengths) if masking == "lengths" else None,
        mask=draw(steps) if masking == "mask" else None,
        resets=draw(st.none() | steps),
        with_carry=draw(st.booleans()),
        with_noise=draw(st.booleans()),
    )


def precision(case: Case) -> Any:
    return jax.enable_x64(case.dtype == "float64")


def arguments(case: Case) -> tuple[Any, dict[str, Any]]:
    """((params, xs, carry), options of `unroll`)."""
    dtype = "float64" if case.dtype == "float64" else "float32"

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)

    params = cast(random_params(case.cell, input_size=case.xs.shape[2]))
    carry = None
    if case.with_carry:
        carry = cast(random_carry(case.cell, params, len(case.xs)))
        if case.name == "slstm":  # a normaliser is positive
            carry = carry._replace(n=1 + carry.n**2)
    options = {"lengths": case.lengths, "mask": case.mask, "resets": case.resets}
    options = {k: jnp.asarray(v) for k, v in options.items() if v is not None}
    if case.with_noise:
        options["key"] = noise_key(0)
    return (params, cast(case.xs), carry), options


def run(case: Case, inputs: Any, options: Any) -> Any:
    """`unroll`'s outputs and the gradients of (params, xs, carry)."""
    return outputs_and_gradients(
        case.cell,
        *inputs,
        case.schedule,
        implementation="autodiff" if case.schedule is None else "fused",
        reverse=case.reverse,
        return_carries=True,
        **options,
    )


@functools.partial(jax.jit, static_argnums=0)
def one_step(cell: lj.Cell, params: Any, carry: Any, x: Any, *noise: Any) -> Any:
    return cell.step(params, carry, x, *noise)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def draw_noise(cell: lj.Cell, key: Any, params: Any, batch: int, time: int) -> Any:
    return None if cell.noise is None else cell.noise(key, params, batch, time)


def row_by_row(case: Case, inputs: Any, options: Any) -> Any:
    """What `unroll` returns, by a loop over the valid steps of each row alone.

    The masked steps are deleted, and a boundary lies between two steps if any was
    between them before.
    """
    cell, valid, (params, xs, carry) = case.cell, case.valid, inputs
    batch, time = valid.shape
    resets = np.zeros_like(valid) if case.resets is None else case.resets
    initial = cell.initial_carry(params, batch)
    begin = initial if carry is None else carry
    noise = None
    if case.with_noise and time:
        noise = draw_noise(cell, options["key"], params, batch, time)
    example = jax.eval_shape(cell.step, params, begin, xs[:, 0] if time else xs.sum(1))
    after, ys = (
        jax.tree.map(lambda a: np.zeros((batch, time, *a.shape[1:]), a.dtype), tree)
        for tree in example
    )
    final = jax.tree.map(np.array, begin)

    def put(room: Any, value: Any, *place: int) -> None:
        for kept, new in zip(
            jax.tree.leaves(room), jax.tree.leaves(value), strict=True
        ):
            kept[place] = new[0]

    for row in range(batch):

        def of_row(tree: Any, row: int = row) -> Any:
            return jax.tree.map(lambda a: a[row : row + 1], tree)

        state, at = of_row(begin), time if case.reverse else -1
        for t in reversed(range(time)) if case.reverse else range(time):
            if valid[row, t]:
                if resets[row, min(at, t) + 1 : max(at, t) + 1].any():
                    state = of_row(initial)
                drawn = ()
                if noise is not None:
                    now = jax.tree.map(lambda a, t=t: a[:, t], noise.step)
                    sequence = of_row(noise.sequence)
                    drawn = (lj.Noise(noise.shared, sequence, of_row(now)),)
                state, y = one_step(cell, params, state, of_row(xs[:, t]), *drawn)
                put(ys, y, row, t)
                at = t
            put(after, state, row, t)
        put(final, state, row)
    return final, ys, after


def derivative(case: Case, inputs: Any, options: Any, direction: Any) -> float:
    """That of `weighted_sum` of the loop's outputs, by differences."""
    step = 1e-5

    def value(sign: int) -> float:
        moved = jax.tree.map(lambda a, d: a + sign * step * d, inputs, direction)
        return float(weighted_sum(row_by_row(case, moved, options)))

    return (value(1) - value(-1)) / (2 * step)


def type_of(array: Any) -> Any:
    return array.dtype


def zero_where_masked(tree: Any, valid: np.ndarray) -> bool:
    return all(np.all(np.asarray(a)[~valid] == 0) for a in jax.tree.leaves(tree))


def assert_near(actual: Any, expected: Any) -> None:
    """The difference is that of bfloat16, beside entries that may be tiny by chance."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, 0, 2e-2 * np.max(np.abs(b), initial=1))


# Of few drawn cases none may have all of this.
EVERYTHING = Case(
    name="lstm",
    hidden=2,
    dtype="float64",
    schedule=ROWS_LAST._replace(chunk=3),
    reverse=True,
    xs=np.random.default_rng(0).normal(size=(2, 4, INPUT)),
    lengths=None,
    mask=np.array([[True, False, True, True], [False, True, True, False]]),
    resets=np.array([[True, True, False, False], [True, True, True, False]]),
    with_carry=True,
    with_noise=False,
)
NO_STEPS = EVERYTHING._replace(
    xs=np.zeros((2, 0, INPUT)), mask=np.zeros((2, 0), bool), resets=None
)
NESTED = EVERYTHING._replace(
    name="zoneout(layer_norm(learned_initial_carry(gru)), 0.2)", with_noise=True
)


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
@example(case=EVERYTHING, seed=0)
@example(case=EVERYTHING._replace(reverse=False), seed=0)
@example(case=NO_STEPS, seed=0)
@settings(PROFILE)
def test_equals_a_loop_of_step_over_each_rows_valid_steps(
    case: Case, seed: int
) -> None:
    with precision(case):
        inputs, options = arguments(case)
        outputs, gradients = run(case, inputs, options)
        assert zero_where_masked((outputs[1], gradients[1]), case.valid)
        assert jax.tree.map(type_of, gradients) == jax.tree.map(type_of, inputs)
    if case.dtype == "bfloat16":
        wide = case._replace(dtype="float64")
        with precision(wide):
            assert_near(outputs, row_by_row(wide, *arguments(wide)))
        return
    with precision(case):
        expected = row_by_row(case, inputs, options)
        assert_close(outputs, expected, 1e-9 if case.dtype == "float64" else 1e-4)
        # An slstm's c and n are over exp(m), through which no gradient goes.
        if case.dtype == "float64" and case.name != "slstm":
            rng = np.random.default_rng(seed)
            direction = jax.tree.map(lambda a: rng.normal(size=a.shape), inputs)
            parts = jax.tree.map(lambda g, d: np.sum(g * d), gradients, direction)
            np.testing.assert_allclose(
                sum(jax.tree.leaves(parts)),
                derivative(case, inputs, options, direction),
                rtol=1e-5,
                atol=1e-6,
            )


@given(
    case=cases(maskings=("lengths", "mask")),
    junk=st.lists(
        st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 0.0, -3.0]), min_size=1
    ),
)
@example(case=NESTED._replace(dtype="float32"), junk=[np.nan, 1e30])
@settings(PROFILE)
def test_padding_content_changes_no_bit(case: Case, junk: list[float]) -> None:
    with precision(case):
        (params, xs, carry), options = arguments(case)
        valid = case.valid[..., None]
        content = jnp.asarray(np.resize(junk, xs.shape), xs.dtype)
        clean, spoilt = (
            run(case, (params, jnp.where(valid, xs, padding), carry), options)
            for padding in (jnp.zeros_like(xs), content)
        )
        assert_same_bits(spoilt, clean)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(clean))


@given(
    case=cases(dtypes=("float64",), names=GATED, outermost=("{}",)),
    schedule=schedules(),
)
@example(case=NESTED, schedule=ROWS_LAST._replace(chunk=3))
@settings(PROFILE)
def test_fused_equals_autodiff(case: Case, schedule: Schedule) -> None:
    with precision(case):
        given = arguments(case)
        fused, autodiff = (
            run(case._replace(schedule=chosen), *given) for chosen in (schedule, None)
        )
        assert_close(fused, autodiff)


@given(case=cases(dtypes=("float64",)), cut=st.integers(0, 7))
@settings(PROFILE)
def test_concatenation(case: Case, cut: int) -> None:
    # What is drawn for a sequence is another for its parts.
    case = case._replace(with_noise=False, lengths=None, mask=case.valid)
    time = case.xs.shape[1]
    cut = min(cut, time)
    if case.resets is not None:
        resets = case.resets.copy()
        for row, valid in zip(resets, case.valid, strict=True):
            # A reset that waits, and in reverse the one at the seam, belongs to the
            # part in which it stands.
            steps = np.flatnonzero(valid)
            if case.reverse:
                row[cut : min(steps[steps >= cut], default=time) + 1] = False
            else:
                row[max(steps[steps < cut], default=-1) + 1 : cut] = False
        case = case._replace(resets=resets)
    with precision(case):
        (params, xs, carry), options = arguments(case)

        def part(where: slice, carry: Any) -> Any:
            own = {name: value[:, where] for name, value in options.items()}
            return run(case, (params, xs[:, where], carry), own)[0]

        parts = [slice(0, cut), slice(cut, time)]
        between, *one = part(parts[case.reverse], carry)
        final, *other = part(parts[not case.reverse], between)
        first, second = (other, one) if case.reverse else (one, other)
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), first, second)
        assert_close(run(case, (params, xs, carry), options)[0], (final, *joined))
