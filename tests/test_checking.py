"""Tests of the run-time checks of annotations, under which all tests run."""

import jax
import jax.numpy as jnp
import pytest
from checking import checked
from jaxtyping import TypeCheckError

import lstm_jax as lj


def test_every_closure_is_checked() -> None:
    for _ in range(2):  # the second cell's functions are the first's anew
        cell = lj.lstm(3)
        params = cell.init(jax.random.key(0), 2)
        carry = cell.initial_carry(params, 4)
        cell.step(params, carry, jnp.ones((4, 2)))
        with pytest.raises(TypeCheckError, match=r"parameters of lstm_jax.*\.step"):
            cell.step(params, carry, [[1.0, 2.0]])


def test_shapes_are_checked() -> None:
    cell = lj.lstm(3)
    params = cell.init(jax.random.key(0), 2)
    with pytest.raises(TypeCheckError, match=r"lstm_jax\.unroll"):
        lj.unroll(cell, params, jnp.ones((4, 2)))


def test_what_differs_is_checked_apart() -> None:
    def declared(annotation: type) -> object:
        def function(value):
            pass

        function.__annotations__ = {"value": annotation}
        return checked(function)

    assert declared(int) is declared(int)
    assert declared(int) is not declared(str)
