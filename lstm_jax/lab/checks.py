"""How far a cell is from each law of `lstm_jax.unroll`; `lstm_jax.lab.laws` lists them.

Shapes: B batch, T time, D features. Parameters are moved from where the cell
begins them, and the carry is one that the cell has reached: zeros hide mistakes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lstm_jax.cells import Cell
from lstm_jax.lab.python_loop import python_unroll, weighted_sum
from lstm_jax.nested import named_leaves
from lstm_jax.recording import differentiable, pick, put
from lstm_jax.unroll import unroll

BATCH, TIME = 4, 9
_SPLIT = 4  # a step in the middle
_PADDING = 3  # steps
# Of finite differences of fourth order; a small one steps over no kink of a gate.
_STEPS = (1e-4, 1e-5, 1e-6)


class Given(NamedTuple):
    """What the laws are tried on."""

    cell: Cell
    params: Any
    xs: Float[Array, "B T D"]
    carry: Any
    mask: Bool[np.ndarray, "B T"]
    resets: Bool[np.ndarray, "B T"]
    key: Any


def make_given(cell: Cell, features: int) -> Given:
    """Random parameters, inputs, a carry, a mask with holes and resets."""
    rng = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), 2)

    def moved(leaf: Array) -> Array:
        return leaf.astype(jnp.float64) + 0.1 * rng.normal(size=leaf.shape)

    params = _changed(moved, cell.init(keys[0], features))
    before, xs = (jnp.asarray(rng.normal(size=(BATCH, TIME, features))) for _ in "ab")
    carry = jax.jit(functools.partial(unroll, cell))(params, before)[0]
    mask = rng.random((BATCH, TIME)) < 0.7
    mask[0] = False  # a row without a step
    resets = rng.random((BATCH, TIME)) < 0.3
    return Given(cell, params, xs, carry, mask, resets, keys[1])


def _changed(change: Callable[[Array], Any], tree: Any) -> Any:
    """The tree with its floating leaves changed; a counter of steps stays."""
    leaves = differentiable(tree)
    return put(tree, leaves, [change(a) for a in pick(tree, leaves)])


@functools.partial(
    jax.jit, static_argnames=("cell", "reverse", "return_carries", "implementation")
)
def run(cell: Cell, params: Any, xs: Any, carry: Any = None, **options: Any) -> Any:
    """`unroll`, compiled."""
    return unroll(cell, params, xs, carry, **options)


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "implementation"))
def run_and_gradients(
    cell: Cell, params: Any, xs: Any, carry: Any, **options: Any
) -> tuple[Any, Any]:
    """What `unroll` gives, and gradients of a sum of it by all of its arguments.

    Those of integers are zeros.
    """
    arguments = params, xs, carry
    leaves = differentiable(arguments)

    def total(floats: list[Array]) -> Any:
        found = unroll(cell, *put(arguments, leaves, floats), **options)
        return weighted_sum(found), found

    gradients, found = jax.grad(total, has_aux=True)(pick(arguments, leaves))
    zeros = jax.tree.map(jnp.zeros_like, arguments)
    return found, put(zeros, leaves, gradients)


def distance(found: Any, expected: Any) -> float:
    """The largest difference of an entry, beside the largest of its array or 1."""
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return np.inf
    largest = 0.0
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape or not np.all(np.isfinite(a) & np.isfinite(b)):
            return np.inf
        if b.size:
            scale = max(1.0, float(np.max(np.abs(b))))
            largest = max(largest, float(np.max(np.abs(a - b))) / scale)
    return largest


def loop(given: Given) -> float:
    """Of a Python loop of `cell.step`."""
    cell, params, xs, carry, *_ = given
    found = run(cell, params, xs, carry, return_carries=True)
    return distance(found, python_unroll(cell, params, xs, carry))


def masks_and_resets(given: Given) -> float:
    """Of the same loop, both directions."""
    cell, params, xs, carry, mask, resets, _ = given
    errors = []
    for reverse in (False, True):
        found = run(
            *(cell, params, xs, carry),
            mask=mask,
            resets=resets,
            reverse=reverse,
            return_carries=True,
        )
        expected = python_unroll(
            *(cell, params, xs, carry), valid=mask, resets=resets, reverse=reverse
        )
        errors.append(distance(found, expected))
    return max(errors)


def autodiff(given: Given) -> float:
    """Of jax's derivative of the loop."""
    cell, params, xs, carry, mask, resets, key = given
    options = {"mask": mask, "resets": resets}
    if cell.noise is not None:
        options["key"] = key
    found, expected = (
        run_and_gradients(
            *(cell, params, xs, carry), **options, implementation=implementation
        )
        for implementation in ("auto", "autodiff")
    )
    return distance(found, expected)


def differences(given: Given) -> float:
    """Of finite differences along random directions, beside the derivative there.

    The least over several steps: beside a kink only the smallest are right, and a
    wrong gradient is wrong at all of them.
    """
    cell, *arguments = given[:4]
    rng = np.random.default_rng(1)
    slope_of = jax.jit(_slope, static_argnums=(0, 1))
    outputs_of = jax.jit(_outputs, static_argnums=(0, 1))
    largest = 0.0
    for number, argument in enumerate(arguments):
        gradients = slope_of(cell, number, *arguments)
        leaves = differentiable(argument)
        towards = [rng.normal(size=g.shape) for g in gradients]
        if number == 2:
            # What of a carry has no derivative was stopped: a stabiliser, which
            # cancels. Any other loss of it shows in the parameters, over time.
            towards = [
                d * bool(np.any(g)) for d, g in zip(towards, gradients, strict=True)
            ]
        expected = sum(np.sum(g * d) for g, d in zip(gradients, towards, strict=True))

        def total(
            step: float,
            number: int = number,
            leaves: list[int] = leaves,
            towards: list[np.ndarray] = towards,
        ) -> np.ndarray:
            floats = pick(arguments[number], leaves)
            moved = [a + step * d for a, d in zip(floats, towards, strict=True)]
            return np.asarray(outputs_of(cell, number, moved, *arguments))

        errors = []
        for step in _STEPS:
            near, far = (total(s) - total(-s) for s in (step, 2 * step))
            errors.append(distance((8 * near - far) / (12 * step), expected))
        largest = max(largest, min(errors))
    return largest


def _outputs(
    cell: Cell, number: int, floats: list[Array], *arguments: Any
) -> Float[Array, ""]:
    """A sum of the outputs, with other floating leaves in one of the arguments."""
    changed = list(arguments)
    changed[number] = put(arguments[number], differentiable(arguments[number]), floats)
    return weighted_sum(unroll(cell, *changed)[1])


def _slope(cell: Cell, number: int, *arguments: Any) -> list[Array]:
    floats = pick(arguments[number], differentiable(arguments[number]))
    return jax.grad(_outputs, argnums=2)(cell, number, floats, *arguments)


def unreached(given: Given) -> list[str]:
    """The parameters of which every entry has a gradient of zero."""
    cell, params, xs, *_ = given

    @jax.jit
    def slope(floats: list[Array]) -> list[Array]:
        def total(floats: list[Array]) -> Array:
            # From the initial carry, which may have parameters of its own.
            return weighted_sum(unroll(cell, put(params, leaves, floats), xs)[1])

        return jax.grad(total)(floats)

    leaves = differentiable(params)
    names = [*named_leaves(params)]
    gradients = slope(pick(params, leaves))
    return [
        names[place]
        for place, gradient in zip(leaves, gradients, strict=True)
        if not np.any(gradient)
    ]


def second(given: Given) -> float:
    """Of the derivative of the derivative, by autodiff."""
    cell, params, xs, carry, *_ = given
    leaves = differentiable(params)

    @functools.partial(jax.jit, static_argnums=1)
    def twice(floats: list[Array], implementation: Any) -> Any:
        def total(floats: list[Array]) -> Any:
            own = put(params, leaves, floats)
            return weighted_sum(
                unroll(cell, own, xs, carry, implementation=implementation)
            )

        return jax.grad(lambda floats: weighted_sum(jax.grad(total)(floats)))(floats)

    floats = pick(params, leaves)
    return distance(twice(floats, "auto"), twice(floats, "autodiff"))


def masked_steps(given: Given) -> float:
    """1 where a masked step changes the carry or has an output."""
    cell, params, xs, carry, mask, *_ = given
    _, ys, carries = run(cell, params, xs, carry, mask=mask, return_carries=True)
    changed = np.any(np.asarray(ys)[~mask] != 0)
    for first, after in zip(*map(jax.tree.leaves, (carry, carries)), strict=True):
        before = np.concatenate([np.asarray(first)[:, None], after[:, :-1]], axis=1)
        changed |= np.any(before[~mask] != np.asarray(after)[~mask])
    return float(changed)


def padding(given: Given) -> float:
    """1 where the content of masked steps changes a bit or has a gradient."""
    cell, params, xs, carry, mask, *_ = given
    results = []
    for content in (0.0, np.nan, np.inf):
        filled = jnp.where(mask[:, :, None], xs, content)
        results.append(run_and_gradients(cell, params, filled, carry, mask=mask))
    bits = [
        [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result)]
        for result in results
    ]
    gradient = np.asarray(results[0][1][1])
    return float(bits[0] != bits[1] or bits[0] != bits[2] or np.any(gradient[~mask]))


def amount(given: Given) -> float:
    """Of fewer and of more steps past the end."""
    cell, params, xs, carry, *_ = given
    lengths = np.asarray([TIME, 0, 2, TIME - 1], np.int32)
    longer = jnp.pad(xs, ((0, 0), (0, _PADDING), (0, 0)))
    (last, ys), gradients = run_and_gradients(cell, params, xs, carry, lengths=lengths)
    found, of_longer = run_and_gradients(cell, params, longer, carry, lengths=lengths)
    params_and_carry = gradients[0], gradients[2]
    return distance(
        (found[0], found[1][:, :TIME], of_longer[0], of_longer[2]),
        (last, ys, *params_and_carry),
    )


def holes(given: Given) -> float:
    """Of sequences without their masked steps."""
    cell, params, xs, carry, mask, *_ = given
    last, ys = run(cell, params, xs, carry, mask=mask)
    order = np.argsort(~mask, axis=1, kind="stable")
    packed = np.take_along_axis(np.asarray(xs), order[:, :, None], axis=1)
    lengths = mask.sum(1).astype(np.int32)
    expected, outputs = run(cell, params, packed, carry, lengths=lengths)
    ys = np.take_along_axis(np.asarray(ys), order[:, :, None], axis=1)
    return distance((last, ys), (expected, outputs))


def reversal(given: Given) -> float:
    """Of the sequence turned round."""
    cell, params, xs, carry, *_ = given
    last, ys = run(cell, params, xs, carry, reverse=True)
    expected, outputs = run(cell, params, xs[:, ::-1], carry)
    return distance((last, ys), (expected, outputs[:, ::-1]))


def parts(given: Given) -> float:
    """Of two parts one after the other, both directions."""
    cell, params, xs, carry, *_ = given
    errors = []
    for reverse in (False, True):
        whole = run(cell, params, xs, carry, reverse=reverse)
        pieces = [xs[:, :_SPLIT], xs[:, _SPLIT:]]
        outputs, state = [], carry
        for piece in reversed(pieces) if reverse else pieces:
            state, ys = run(cell, params, piece, state, reverse=reverse)
            outputs.append(ys)
        outputs = outputs[::-1] if reverse else outputs
        errors.append(distance((state, jnp.concatenate(outputs, axis=1)), whole))
    return max(errors)


def reset(given: Given) -> float:
    """Of the second part alone, from the initial carry."""
    cell, params, xs, carry, *_ = given
    resets = np.zeros((BATCH, TIME), bool)
    resets[:, _SPLIT] = True
    last, ys = run(cell, params, xs, carry, resets=resets)
    _, first = run(cell, params, xs[:, :_SPLIT], carry)
    expected, second = run(cell, params, xs[:, _SPLIT:])
    return distance((last, ys), (expected, jnp.concatenate([first, second], axis=1)))


def nothing(given: Given) -> float:
    """1 where a sequence of no steps changes the carry or has an output."""
    cell, params, xs, carry, *_ = given
    lengths = np.zeros(BATCH, np.int32)
    last, ys = run(cell, params, xs, carry, lengths=lengths)
    of_none, none = run(cell, params, xs[:, :0], carry)
    same = all(
        np.array_equal(a, b) and np.array_equal(c, b)
        for a, b, c in zip(*map(jax.tree.leaves, (last, carry, of_none)), strict=True)
    )
    return float(not same or np.any(np.asarray(ys)) or none.shape[1] != 0)


def rows(given: Given) -> float:
    """Of each row by itself."""
    cell, params, xs, carry, *_ = given
    found = run(cell, params, xs, carry)
    alone = []
    for i in range(BATCH):
        x, state = jax.tree.map(lambda a, i=i: a[i : i + 1], (xs, carry))
        alone.append(run(cell, params, x, state))
    expected = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *alone)
    return distance(found, expected)


def members(given: Given) -> float:
    """Of each of several sets of parameters by itself, under vmap."""
    cell, params, xs, carry, *_ = given
    others = _changed(lambda a: 0.9 * a, params)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, others)
    found = jax.jit(jax.vmap(lambda p: run_and_gradients(cell, p, xs, carry)))(both)
    alone = [run_and_gradients(cell, p, xs, carry) for p in (params, others)]
    return distance(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


def single(given: Given) -> float:
    """Of float32 beside float64; no type changes on the way."""
    cell, params, xs, carry, *_ = given
    arguments = _changed(lambda a: a.astype(jnp.float32), (params, xs, carry))
    found = run_and_gradients(cell, *arguments)
    types = {leaf.dtype for leaf in pick(found, differentiable(found))}
    others = types - {jnp.dtype("float32")}
    if others:
        raise TypeError(
            f"of float32 comes {', '.join(map(str, sorted(others, key=str)))}"
        )
    # Beside the same rounded inputs.
    wide = _changed(lambda a: a.astype(jnp.float64), arguments)
    return distance(found, run_and_gradients(cell, *wide))


def noise(given: Given) -> float:
    """Of the loop with the same draws; other keys must give other draws."""
    cell, params, xs, carry, mask, resets, key = given
    assert cell.noise is not None
    options = {"mask": mask, "resets": resets, "return_carries": True}
    found = run(cell, params, xs, carry, key=key, **options)
    drawn = cell.noise(key, params, BATCH, TIME)
    expected = python_unroll(
        *(cell, params, xs, carry), valid=mask, resets=resets, noise=drawn
    )
    other = run(cell, params, xs, carry, key=jax.random.key(9), **options)
    if distance(other, found) == 0.0:
        raise ValueError("two keys give the same outputs")
    return distance(found, expected)
