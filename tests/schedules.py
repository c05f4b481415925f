"""Layouts of the fused path, whatever would be chosen for the small sizes of tests."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lstm_jax.layout import FIRST, LAST
from lstm_jax.schedule import Schedule

ROWS_FIRST = Schedule(
    rows=FIRST, hoist=False, transposed=False, chunk=20, unroll=1, why="a test"
)
TRANSPOSED = ROWS_FIRST._replace(transposed=True, chunk=15)
HOISTED = ROWS_FIRST._replace(hoist=True, chunk=100, unroll=3)
ROWS_LAST = ROWS_FIRST._replace(rows=LAST)
LAYOUTS = {
    "rows_first": ROWS_FIRST,
    "transposed": TRANSPOSED,
    "hoisted": HOISTED,
    "rows_last": ROWS_LAST,
}


@contextmanager
def scheduled(schedule: Schedule) -> Iterator[None]:
    """`unroll` takes this schedule, not transposed for a cell with its own product."""

    def schedule_for(backend: str, fused: Any, *sizes: Any) -> Schedule:
        if fused.recurrent is None:
            return schedule
        return schedule._replace(transposed=False)

    with pytest.MonkeyPatch.context() as patch:
        # By the module's name: the package has a function of that name.
        patch.setattr(sys.modules["lstm_jax.unroll"], "schedule_for", schedule_for)
        yield
