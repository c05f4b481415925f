"""Gates that close over a traced value are refused: its gradient would be lost."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from example_cells import HIDDEN, random_params, random_xs
from reference import assert_close, weighted_sum

import lstm_jax as lj

pytestmark = pytest.mark.usefixtures("strict", "x64")


def leaky_gates(rate: Any) -> Any:
    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = rate * carry.h + (1 - rate) * jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), h

    return gates


def by_gates(rate: Any) -> lj.Cell:
    return lj.gated(HIDDEN, 1, leaky_gates(rate))


def by_jitted_gates(rate: Any) -> lj.Cell:
    return lj.gated(HIDDEN, 1, jax.jit(leaky_gates(rate)))


def by_recurrent(rate: Any) -> lj.Cell:
    def recurrent(params: Any, h: Any, noise: Any) -> Any:
        return jax.vmap(lambda zh: rate * zh)(h @ params["recurrent_kernel"])

    return lj.gated(HIDDEN, 1, leaky_gates(0.4), recurrent=recurrent)


def by_activation(rate: Any) -> lj.Cell:
    return lj.lstm(HIDDEN, activation=lambda x: jnp.tanh(rate * x))


def loss(make: Any, rate: Any, implementation: str) -> Any:
    cell = make(rate)
    params, xs = random_params(cell), random_xs(2, 4)
    return weighted_sum(lj.unroll(cell, params, xs, implementation=implementation))


def grad(loss: Any) -> Any:
    return jax.grad(loss)(0.3)


def grad_of_jit(loss: Any) -> Any:
    return jax.grad(jax.jit(loss))(0.3)


def jit_of_grad(loss: Any) -> Any:
    return jax.jit(jax.grad(loss))(0.3)


def grad_of_vmap(loss: Any) -> Any:
    def total(rates: Any) -> Any:
        return jnp.sum(jax.vmap(loss)(rates))

    return jnp.sum(jax.grad(total)(jnp.array([0.3])))


def grad_of_scan(loss: Any) -> Any:
    def total(rate: Any) -> Any:
        def body(total: Any, _: Any) -> Any:
            return total + loss(rate), None

        return jax.lax.scan(body, jnp.zeros(()), length=1)[0]

    return jax.grad(total)(0.3)


def grad_of_scan_over(loss: Any) -> Any:
    def total(rates: Any) -> Any:
        def body(total: Any, rate: Any) -> Any:
            return total + loss(rate), None

        return jax.lax.scan(body, jnp.zeros(()), rates)[0]

    return jnp.sum(jax.grad(total)(jnp.array([0.3])))


TRANSFORMS = [
    grad,
    grad_of_jit,
    jit_of_grad,
    grad_of_vmap,
    grad_of_scan,
    grad_of_scan_over,
]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("implementation", ["fused", "auto"])
@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (by_gates, "gates"),
        (by_jitted_gates, "gates"),
        (by_recurrent, "recurrent"),
        (by_activation, "gates"),
    ],
)
def test_closure_over_a_traced_value_is_a_type_error(
    make: Any, culprit: str, implementation: str, transform: Any
) -> None:
    with pytest.raises(TypeError, match=f"{culprit} closes over.*extras.*noise"):
        transform(lambda rate: loss(make, rate, implementation))


@pytest.mark.parametrize("transform", [grad_of_jit, grad_of_vmap, grad_of_scan_over])
def test_autodiff_differentiates_closures(transform: Any) -> None:
    epsilon = 1e-6
    ahead, behind = (
        loss(by_gates, rate, "autodiff") for rate in (0.3 + epsilon, 0.3 - epsilon)
    )
    actual = transform(lambda rate: loss(by_gates, rate, "autodiff"))
    assert_close(actual, (ahead - behind) / (2 * epsilon), 1e-7)


def test_closures_over_constants_are_allowed() -> None:
    """An array that nobody traces is a constant of the program."""
    rate = jnp.array(0.3)
    for make in (by_gates, by_jitted_gates, by_recurrent):
        cell = make(rate)
        params, xs = random_params(cell), random_xs(2, 4)

        def gradient(implementation: str, cell: Any = cell, xs: Any = xs) -> Any:
            def total(trained: Any) -> Any:
                outputs = lj.unroll(cell, trained, xs, implementation=implementation)
                return weighted_sum(outputs)

            return jax.jit(jax.grad(total))

        assert_close(gradient("fused")(params), gradient("autodiff")(params))


@pytest.mark.parametrize(
    "transform", [pytest.param(grad, marks=pytest.mark.slow), grad_of_vmap]
)
def test_initial_carry_may_close_over_a_traced_value(transform: Any) -> None:
    def make(rate: Any) -> lj.Cell:
        def initial_carry(params: Any, batch_size: int) -> lj.HiddenCarry:
            return lj.HiddenCarry(rate * jnp.ones((batch_size, HIDDEN)))

        return lj.gated(HIDDEN, 1, leaky_gates(0.4), initial_carry=initial_carry)

    fused, autodiff = (
        transform(lambda rate, way=way: loss(make, rate, way))
        for way in ("fused", "autodiff")
    )
    assert_close(fused, autodiff)
    assert abs(float(fused)) > 1e-3
