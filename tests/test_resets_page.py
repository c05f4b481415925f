"""Tests of docs/resets.md: its code runs, and episodes in a rollout are those alone."""

import contextlib
import io
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from documents import code_blocks

import lstm_jax as lj


@pytest.fixture(scope="module")
def page() -> tuple[dict[str, Any], str]:
    names: dict[str, Any] = {}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for block in code_blocks("resets.md", "python"):
            exec(block, names)
    return names, out.getvalue()


def test_differences_are_rounding(page: tuple[dict[str, Any], str]) -> None:
    lines = [line.rsplit(": ", 1) for line in page[1].splitlines()]
    assert [name for name, _ in lines] == ["acting", "an episode alone"]
    assert all(float(apart) < 1e-6 for _, apart in lines)


@pytest.mark.parametrize("time", [1, 4, 12])
def test_chunks_are_episodes(page: tuple[dict[str, Any], str], time: int) -> None:
    """Of every row; chunks of 4 end three times with a step that only resets."""
    names = page[0]
    cell, params = names["cell"], names["params"]
    xs, before = np.asarray(names["observations"]), np.asarray(names["before"])
    assert before[:, 3::4].sum() == 3
    state, parts = names["begin"](2), []
    for t in range(0, 12, time):
        chunk = jnp.asarray(xs[:, t : t + time]), jnp.asarray(before[:, t : t + time])
        state, ys = names["run"](params, *chunk, state)
        parts.append(ys)
    ys = np.concatenate(parts, axis=1)
    assert not ys[before].any()
    for row in range(2):
        bounds = [-1, *np.flatnonzero(before[row]), 12]
        for end, begin in zip(bounds[1:], bounds[:-1], strict=True):
            if end > begin + 1:
                episode = xs[row : row + 1, begin + 1 : end]
                _, alone = lj.unroll(cell, params, jnp.asarray(episode))
                np.testing.assert_allclose(
                    ys[row, begin + 1 : end], alone[0], atol=1e-6
                )
