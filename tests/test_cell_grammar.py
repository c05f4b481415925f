"""Tests of lstm_jax.cell_grammar."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.cell_grammar import parse_cell
from lstm_jax.combinators import block_diagonal, layer_norm, project, stack, zoneout
from lstm_jax.errors import UserError

HIDDEN, INPUT = 4, 3


def params_and_step(cell: lj.Cell) -> Any:
    """Params as initialised, and a step from a random carry with random params."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    params = cell.init(jax.random.key(1), INPUT)
    drawn = jax.tree.map(draw, params)
    carry = jax.tree.map(draw, cell.initial_carry(drawn, 2))
    x = jnp.asarray(rng.normal(size=(2, INPUT)), jnp.float32)
    return params, cell.step(drawn, carry, x)


CELLS = {
    "lstm": lj.lstm(HIDDEN),
    " lstm() ": lj.lstm(HIDDEN),
    "lstm(activation=relu)": lj.lstm(HIDDEN, activation=jax.nn.relu),
    "lstm(gate_activation=hard_sigmoid)": lj.lstm(
        HIDDEN, gate_activation=jax.nn.hard_sigmoid
    ),
    "lstm(forget_bias=-2.5, activation=sigmoid)": lj.lstm(
        HIDDEN, activation=jax.nn.sigmoid, forget_bias=-2.5
    ),
    "lstm(forget_bias=0)": lj.lstm(HIDDEN, forget_bias=0.0),
    "lstm(recurrent_init=None)": lj.lstm(HIDDEN, recurrent_init=None),
    "lstm(dtype=bfloat16)": lj.lstm(HIDDEN, dtype=jnp.bfloat16),
    "gru": lj.gru(HIDDEN),
    "gru(reset_after=True)": lj.gru(HIDDEN),
    "gru(reset_after=False)": lj.gru(HIDDEN, reset_after=False),
    "gru(reset_after=False, dtype=bfloat16)": lj.gru(
        HIDDEN, reset_after=False, dtype=jnp.bfloat16
    ),
    "simple_rnn": lj.simple_rnn(HIDDEN),
    "simple_rnn(\n  activation=relu,\n)": lj.simple_rnn(HIDDEN, activation=jax.nn.relu),
}


@pytest.mark.parametrize("text", CELLS)
def test_is_the_cell(text: str) -> None:
    got = params_and_step(parse_cell(text, HIDDEN))
    want = params_and_step(CELLS[text])
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("lstm(activation=relu)", "lstm"),
        ("lstm(gate_activation=hard_sigmoid)", "lstm"),
        ("lstm(forget_bias=0)", "lstm"),
        ("lstm(recurrent_init=None)", "lstm"),
        ("lstm(dtype=bfloat16)", "lstm"),
        ("gru(reset_after=False)", "gru"),
        ("simple_rnn(activation=relu)", "simple_rnn"),
    ],
)
def test_keywords_are_used(text: str, plain: str) -> None:
    got = jax.tree.leaves(params_and_step(parse_cell(text, HIDDEN)))
    without = jax.tree.leaves(params_and_step(parse_cell(plain, HIDDEN)))
    assert len(got) != len(without) or any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(got, without, strict=True)
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not parse"),
        ("lstm gru", "does not parse"),
        ("lstm(", "does not parse"),
        ("lstm; gru", "does not parse"),
        ("lstm\ngru", "does not parse"),
        ("lstm\x00", "does not parse"),
        ("lstm(activation=)", "does not parse"),
        ("lstm(activation=__import__('os')", "does not parse"),
        ("my_cell.py", "a config names cells of this package and runs no file"),
        ("layer_norm(cells/my_cell.py)", "by lstm_jax.fit"),
        ("lstm(64)", "is no cell with keywords"),
        ("lstm(*[1])", "is no cell with keywords"),
        ("lj.lstm", "is no cell with keywords"),
        ("lj.lstm()", "is no cell with keywords"),
        ("lstm[0]", "is no cell with keywords"),
        ("lstm()()", "is no cell with keywords"),
        ("lambda: lstm", "is no cell with keywords"),
        ("(lambda: lstm)()", "is no cell with keywords"),
        ("[lstm]", "is no cell with keywords"),
        ("'lstm'", "is no cell with keywords"),
        ("lstm if 1 else gru", "is no cell with keywords"),
        ('__import__("os").system("x")', "is no cell with keywords"),
        ("LSTM", "unknown cell 'LSTM': choose one of simple_rnn, lstm, gru"),
        ("eval()", "unknown cell 'eval'"),
        ("__import__(name=os)", "unknown cell '__import__'"),
        ("lstm(hidden_size=3)", "lstm takes activation, gate_activation, forget_bias"),
        ("lstm(**{'forget_bias': 1})", "lstm takes"),
        ("lstm(**None)", "lstm takes"),
        ("lstm(kernel_init=None)", "lstm takes"),
        ("gru(forget_bias=1)", "gru takes reset_after"),
        ("lstm(activation=gelu)", "one of tanh, relu, sigmoid, hard_sigmoid"),
        ("lstm(activation='relu')", "one of tanh"),
        ("lstm(activation=3)", "one of tanh"),
        ("lstm(activation=None)", "one of tanh"),
        ("lstm(activation=bfloat16)", "one of tanh"),
        ("lstm(activation=jax.nn.relu)", "one of tanh"),
        ("lstm(activation=relu[0])", "one of tanh"),
        ("lstm(activation=relu(tanh))", "one of tanh"),
        ("lstm(activation=lambda x: x)", "one of tanh"),
        ("lstm(activation=lstm(activation=relu))", "one of tanh"),
        ("lstm(activation=__import__('os').system('x'))", "one of tanh"),
        ("lstm(dtype=relu)", "one of bfloat16, float32"),
        ("lstm(dtype=int8)", "one of bfloat16, float32"),
        ("lstm(recurrent_init=1)", "one of None"),
        ("gru(reset_after=0)", "one of True, False"),
        ("gru(reset_after=None)", "one of True, False"),
        ("lstm(forget_bias=1, forget_bias=2)", "gives a keyword twice"),
        ("gru(dtype=None, reset_after=True, dtype=None)", "gives a keyword twice"),
        ("lstm(forget_bias=None)", "is a number"),
        ("lstm(forget_bias=tanh)", "is a number"),
        ("lstm(forget_bias='1')", "is a number"),
        ("lstm(forget_bias=1+1)", "is a number"),
        ("lstm(forget_bias=2**9)", "is a number"),
        ("lstm(forget_bias=1j)", "is a number"),
        ("lstm(forget_bias=nan)", "is a number"),
        ("lstm(forget_bias=1e999)", "is a number"),
    ],
)
def test_other_texts(text: str, reason: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("os.system", lambda command: pytest.fail("evaluated"))
    with pytest.raises(UserError) as raised:
        parse_cell(text, HIDDEN)
    message = str(raised.value)
    assert reason in message
    assert "\n" not in message


# Where Python's own parser and its walks of the tree give up in other ways.
@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "-" * 100_000 + "1",
        "lstm(forget_bias=" + "-" * 2_000 + "1)",
        "lstm(forget_bias=1" + "+1" * 900 + ")",
        "lstm(forget_bias=1" + "+1" * 50_000 + ")",
        "lstm(forget_bias=" + "9" * 5_000 + ")",
        "lstm(forget_bias=" + "9" * 400 + ")",
        "lstm" + ".a" * 50_000,
        "lstm" + "()" * 50_000,
        "lstm(activation=" * 90 + "relu" + ")" * 90,
        "lstm(activation=" + "[" * 150 + "]" * 150 + ")",
        "lstm" * 100_000,
    ],
    ids=range(12),
)
def test_huge_texts(text: str) -> None:
    with pytest.raises(UserError):
        parse_cell(text, HIDDEN)


@pytest.mark.parametrize("hidden_size", [0, -1])
def test_hidden_size(hidden_size: int) -> None:
    with pytest.raises(UserError, match="hidden_size"):
        parse_cell("gru(reset_after=False)", hidden_size)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("layer_norm(zoneout(lstm, 0.1))", layer_norm(zoneout(lj.lstm(HIDDEN), 0.1))),
        ("zoneout(rate=0.25, cell=lstm)", None),
        ("stack(lstm, gru())", stack(lj.lstm(HIDDEN), lj.gru(HIDDEN))),
        ("project(lstm(peephole=True), 2)", project(lj.lstm(HIDDEN, peephole=True), 2)),
        (
            "block_diagonal(slstm, heads=2)",
            block_diagonal(lj.slstm(HIDDEN), 2),
        ),
        ("residual(clip(min_gru, 1.0))", None),
        ("mgu(dtype=bfloat16)", lj.mgu(HIDDEN, dtype=jnp.bfloat16)),
        ("zoneout(lstm)", None),
        ("zoneout(rate=0.1)", None),
        ("zoneout(lstm, 0.1, 2)", None),
        ("zoneout(lstm, 0.1, rate=0.2)", None),
        ("zoneout(lstm, rate=2)", None),
        ("zoneout(*lstm, 0.1)", None),
        ("zoneout(lstm, **rates)", None),
        ("stack()", None),
        ("stack(lstm, depth=2)", None),
        ("project(lstm, 1.5)", None),
        ("layer_norm(project(lstm, 2))", None),
        ("layer_norm(nothing)", None),
        ("indrnn(recurrent_init=None)", None),
        ("layer_norm(zoneout(slstm, 0.1))", None),
        ("layer_norm(" * 500 + "lstm" + ")" * 500, None),
    ],
    ids=range(22),
)
def test_combinators(text: str, cell: lj.Cell | None) -> None:
    """None: there is no such cell."""
    if cell is None:
        with pytest.raises(UserError):
            parse_cell(text, HIDDEN)
        return
    params = cell.init(jax.random.key(0), 3)
    written = parse_cell(text, HIDDEN)
    xs = jax.random.normal(jax.random.key(1), (2, 5, 3))
    key = jax.random.key(2)
    np.testing.assert_array_equal(
        lj.unroll(written, written.init(jax.random.key(0), 3), xs, key=key)[1],
        lj.unroll(cell, params, xs, key=key)[1],
    )
