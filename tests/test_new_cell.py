"""Tests of docs/new_cell.md: its code runs, and says what the text says."""

import contextlib
import io
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documents import DOCS, code_blocks

import lstm_jax as lj
from lstm_jax.lab import own_cell

PAGE, FILE = "new_cell.md", DOCS / "two_memories.py"

# What the page says for a machine of its own, as tests can afford it.
SMALLER = {
    "(64, 100, 32)": "(4, 10, 32)",
    "timed = cell(128)": "timed = cell(8)",
    "config.num_steps =": "config.devices.count = 1\nconfig.num_steps =",
}


class Ran(NamedTuple):
    """What a page defined, and printed."""

    names: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def ran(fast_runs: Path) -> Ran:
    page = code_blocks(PAGE, "python")
    for written, smaller in SMALLER.items():
        assert sum(block.count(written) for block in page) == 1
        page = [block.replace(written, smaller) for block in page]
    names: dict[str, Any] = {}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for block in page:
            exec(block, names)
    return Ran(names, out.getvalue())


def test_the_file_is_the_page() -> None:
    first, second, *_ = code_blocks(PAGE, "python")
    text = FILE.read_text(encoding="utf-8")
    assert text == f"{first}\n\n{second}"
    assert len(text.splitlines()) <= 20
    assert own_cell.load(FILE).make(8).fused is not None


def test_the_cell_is_its_equations(x64: None) -> None:
    # By numpy alone, from the text of section 1.
    cell = runpy.run_path(str(FILE))["cell"](4)
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=leaf.shape))
        for name, leaf in cell.init(jax.random.key(0), 3).items()
    }
    xs = rng.normal(size=(2, 6, 3))
    carry, ys = lj.unroll(cell, params, jnp.asarray(xs))
    params = jax.device_get(params)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    h, c, s = np.zeros((3, 2, 4))
    k = sigmoid(params["keep"])
    for t in range(6):
        z = xs[:, t] @ params["kernel"] + params["bias"]
        f, g, o = np.split(z + h @ params["recurrent_kernel"], 3, axis=1)
        c = sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(g)
        s = k * s + (1 - k) * c
        h = sigmoid(o) * np.tanh(c + s)
        np.testing.assert_allclose(ys[:, t], h, rtol=1e-12)
    np.testing.assert_allclose(carry.fast, c, rtol=1e-12)
    np.testing.assert_allclose(carry.slow, s, rtol=1e-12)


def numbers_after(printed: str, label: str) -> float:
    (line,) = (line for line in printed.splitlines() if line.startswith(label))
    return float(line.removeprefix(label).split()[0])


@pytest.mark.slow
def test_it_runs(ran: Ran) -> None:
    assert numbers_after(ran.printed, "past the end:") == 0
    for label in ("in two parts:", "after a reset:", "in reverse:"):
        assert numbers_after(ran.printed, label) < 1e-6
    assert ran.names["carry"].slow.shape == (4, 16)


@pytest.mark.slow
def test_it_is_checked(ran: Ran) -> None:
    assert numbers_after(ran.printed, "from autodiff:") < 1e-12
    assert ran.printed.count("Holds: True\n") == 2
    assert "False" not in ran.printed


@pytest.mark.slow
def test_it_is_combined(ran: Ran) -> None:
    names = ran.names
    norm = names["deep_params"]["layer_0"]["layer_norm"]
    assert norm["x"].shape == (48,)
    assert 1e-3 < np.abs(names["ys_mean"] - names["ys_drawn"]).max() < 1
    moved = numbers_after(ran.printed, "moved by the noise:")
    assert 1e-3 < moved < 1


@pytest.mark.slow
def test_each_unit_hears_itself_alone(ran: Ran) -> None:
    names = ran.names
    assert names["alone_params"]["recurrent_kernel"].shape == (48,)

    # Row i is given an h of which unit i alone is not zero, the last row none.
    h = jnp.eye(17, 16)
    carry = names["Carry"](h, jnp.zeros_like(h), jnp.zeros_like(h))
    new, _ = names["alone"].step(names["alone_params"], carry, jnp.ones((17, 8)))
    moved = np.asarray(new.h[:16] != new.h[16:])
    np.testing.assert_array_equal(moved, np.eye(16, dtype=bool))


@pytest.mark.slow
def test_it_learns(ran: Ran) -> None:
    assert ran.names["result"]["test_accuracy"] > 0.9
    losses = ran.names["losses"]
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.slow
def test_what_does_not_fit_runs(ran: Ran) -> None:
    names = ran.names
    assert np.all(np.asarray(names["ys_deeper"][1, 7:]) == 0)
    assert np.any(np.asarray(names["ys_deeper"][1, 6]) != 0)


@pytest.mark.slow
def test_what_is_wrong_is_refused(ran: Ran) -> None:
    traced, headless, named, wrapped = ran.printed.splitlines()[-4:]
    assert traced.startswith("TypeError: gates closes over a traced value")
    assert headless.startswith("ValueError: carry must be a NamedTuple type with")
    assert named.startswith("ValueError: an extra may not be named 'bias'")
    assert wrapped.startswith("ValueError: layer_norm takes a cell made by gated")


def test_the_lab_is_given_the_file() -> None:
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    assert f"python lab.py docs/{FILE.name} " in text
