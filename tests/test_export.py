"""Tests of exported cells, which run in a process that knows nothing of the package."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import lstm_jax as lj
from lstm_jax import combinators
from lstm_jax.errors import UserError
from lstm_jax.export import export_sequence, export_step, serialize
from lstm_jax.nested import named_leaves, put_leaves

# Sizes are symbols while a program is exported, and annotated as int.
pytestmark = pytest.mark.usefixtures("unchecked_types")

FEATURES, TIME = 3, 6
# The others are of their kinds.
QUICK = ("lstm", "stack", "two outputs")
# What is run with each batch; with one of them, all there is.
KINDS = {1: ["sequence"], 3: ["step", "sequence", "plain"], 7: ["sequence"]}


def two_outputs() -> lj.Cell:
    """A cell whose y is no array, of sizes that differ."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), {"all": (h, -h), "sum": h.sum()}

    return lj.gated(hidden_size=5, num_gates=1, gates=gates)


CELLS = {
    "lstm": lj.lstm(5),
    "gru": lj.gru(5),
    "gru, reset before": lj.gru(5, reset_after=False),
    "layer_norm": combinators.layer_norm(lj.lstm(5)),
    "stack": combinators.stack(lj.lstm(5), combinators.residual(lj.gru(5))),
    "learned carry": combinators.learned_initial_carry(lj.gru(5)),
    "noise": combinators.zoneout(combinators.recurrent_dropout(lj.lstm(5), 0.3), 0.2),
    "min_gru": lj.min_gru(5),
    "two outputs": two_outputs(),
}
# What a program is loaded and run with; its own folder is the last argument.
LOADER = """
import json, sys
import jax, numpy as np
from jax import export
from pathlib import Path

folder = Path(sys.argv[1])
for place in folder.iterdir():
    weights = dict(np.load(place / "weights.npz"))
    programs = {
        name: export.deserialize((place / f"{name}.jax").read_bytes())
        for name in ("step", "sequence", "plain")
    }
    found = {}
    for batch, kinds in json.loads(sys.argv[2]).items():
        given = dict(np.load(place / f"{batch}.npz"))
        xs, lengths = given.pop("xs"), given.pop("lengths")
        arguments = {
            "step": (np.nan_to_num(xs[:, 0]), given),
            "sequence": (xs, lengths, given),
            "plain": (np.nan_to_num(xs),),
        }
        for name in kinds:
            returned = jax.jit(programs[name].call)(weights, *arguments[name])
            for path, leaf in jax.tree_util.tree_leaves_with_path(returned):
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                found[f"{batch}/{name}/{where}"] = leaf
    np.savez(place / "found.npz", **found)
strangers = [name for name in ("lstm_jax", "flax", "beartype") if name in sys.modules]
print("imported", *strangers)
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(QUICK, id="quick"),
        pytest.param(
            tuple(name for name in CELLS if name not in QUICK),
            id="others",
            marks=pytest.mark.slow,
        ),
    ],
)
def exported(tmp_path_factory: pytest.TempPathFactory, request: Any) -> Path:
    """A folder a cell: programs, inputs, and what another process made of them."""
    folder = tmp_path_factory.mktemp("exported")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtyping.config.jaxtyping_disable", True)
        for name in request.param:
            cell, place = CELLS[name], folder / name
            place.mkdir()
            params = random_params(cell)
            np.savez(place / "weights.npz", **named_leaves(params))
            for kind, program in {
                "step": export_step(cell, params, FEATURES),
                "sequence": export_sequence(
                    cell, params, FEATURES, lengths=True, carry=True
                ),
                "plain": export_sequence(cell, params, FEATURES, time=TIME),
            }.items():
                (place / f"{kind}.jax").write_bytes(serialize(program))
            for batch in KINDS:
                lengths = rng.integers(0, TIME + 1, batch).astype(np.int32)
                xs = rng.normal(size=(batch, TIME, FEATURES)).astype(np.float32)
                xs[np.arange(TIME) >= lengths[:, None]] = np.nan
                carry = jax.tree.map(
                    lambda a: rng.normal(size=a.shape).astype(a.dtype),
                    jax.eval_shape(
                        lambda p, c=cell, b=batch: c.initial_carry(p, b), params
                    ),
                )
                np.savez(
                    place / f"{batch}.npz",
                    xs=xs,
                    lengths=lengths,
                    **named_leaves(carry),
                )
    # -I: neither PYTHONPATH nor the current folder is searched.
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADER, str(folder), json.dumps(KINDS)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr
    return folder


def random_params(cell: lj.Cell) -> Any:
    """Parameters none of which is zero."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape, scale=0.5), a.dtype), shapes
    )


def test_numbers_without_the_package(exported: Path) -> None:
    """One program for each batch size; content past a row's length is NaN."""
    for place in exported.iterdir():
        assert_found_as_computed(CELLS[place.name], place)


def assert_found_as_computed(cell: lj.Cell, place: Path) -> None:
    params = random_params(cell)
    found = dict(np.load(place / "found.npz"))
    given = [dict(np.load(place / f"{batch}.npz")) for batch in KINDS]
    # All batches in one: a program of the package's own is compiled once.
    rows = {key: np.concatenate([g[key] for g in given]) for key in given[0]}
    xs, lengths = rows.pop("xs"), rows.pop("lengths")
    carry = put_leaves(cell.initial_carry(params, len(xs)), rows)

    @jax.jit
    def expected(carry: Any, xs: Any, lengths: Any) -> Any:
        known = jnp.nan_to_num(xs)
        after, y = cell.step(params, carry, known[:, 0])
        last, ys = lj.unroll(cell, params, xs, carry, lengths=lengths)
        plain_last, plain = lj.unroll(cell, params, known)
        return {
            "step": (y, after),
            "sequence": (ys, last),
            "plain": (plain, plain_last),
        }

    whole = {k: named_leaves(v) for k, v in expected(carry, xs, lengths).items()}
    start = 0
    for batch, kinds in KINDS.items():
        for kind in kinds:
            for key, value in whole[kind].items():
                np.testing.assert_allclose(
                    found.pop(f"{batch}/{kind}/{key}"),
                    value[start : start + batch],
                    atol=2e-6,
                    rtol=0,
                )
        start += batch
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "tolerance"),
    [
        (lj.lstm(5, dtype=jnp.bfloat16), 2e-2),
        (combinators.block_diagonal(lj.lstm(6), 2), 2e-6),
        (combinators.project(lj.slstm(6), 4), 2e-6),
    ],
    ids=["bfloat16", "own product", "projected"],
)
def test_numbers_of_more_cells(cell: lj.Cell, tolerance: float) -> None:
    params = random_params(cell)
    made = serialize(export_sequence(cell, params, FEATURES))
    xs = np.random.default_rng(0).normal(size=(2, TIME, FEATURES)).astype(np.float32)
    found = export.deserialize(bytearray(made)).call(named_leaves(params), xs)
    last, ys = lj.unroll(cell, params, xs)
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves((ys, named_leaves(last))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def test_programs_are_for_all_platforms_and_versions(exported: Path) -> None:
    for path in exported.rglob("*.jax"):
        program = export.deserialize(bytearray(path.read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert program.nr_devices == 1
        # jax's own check of shapes; it has no other that might not run later.
        calls = re.findall(r"custom_call @(\w+)", program.mlir_module())
        assert set(calls) <= {"shape_assertion"}


def test_programs_hold_no_weights() -> None:
    cell = lj.lstm(64)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 64))  # 132 KB
    assert len(serialize(export_sequence(cell, params, 64))) < 20_000


@pytest.mark.parametrize(("time", "loops"), [(None, 1), (TIME, 0)])
def test_all_steps_at_once_where_their_number_is_known(
    time: int | None, loops: int
) -> None:
    cell = lj.min_gru(5)
    program = export_sequence(cell, random_params(cell), FEATURES, time=time)
    assert program.mlir_module().count("stablehlo.while") == loops


def test_other_sizes_are_refused() -> None:
    cell = lj.gru(5)
    weights = named_leaves(random_params(cell))
    program = export_sequence(cell, random_params(cell), FEATURES, time=TIME)
    with pytest.raises(ValueError, match="for args"):
        program.call(weights, jnp.zeros((2, TIME + 1, FEATURES)))
    with pytest.raises(ValueError, match="for args"):
        program.call(weights, jnp.zeros((2, TIME, FEATURES + 1)))


def test_without_flatbuffers(monkeypatch: Any) -> None:
    def missing(*_: Any, **__: Any) -> bytes:
        raise ModuleNotFoundError("No module named 'flatbuffers'")

    cell = lj.gru(5)
    program = export_step(cell, random_params(cell), FEATURES)
    monkeypatch.setattr(export.Exported, "serialize", missing)
    with pytest.raises(UserError, match=r"flatbuffers .*\[export\]"):
        serialize(program)


def test_a_program_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    cell = lj.lstm(5)
    params = random_params(cell)
    limit = jax.config.jax_traceback_in_locations_limit
    programs = [
        serialize(export_step(cell, params, FEATURES)),
        serialize(export_sequence(cell, params, FEATURES, lengths=True)),
    ]
    for program in programs:
        assert b".py" not in program
        assert str(Path(__file__).parents[1]).encode() not in program
    assert jax.config.jax_traceback_in_locations_limit == limit
    # Called from another place, it is the same.
    there = tmp_path / "elsewhere.py"
    there.write_text(
        "\n\ndef call(function, *arguments):\n  return function(*arguments)"
    )
    call = runpy.run_path(str(there))["call"]
    assert call(lambda: serialize(export_step(cell, params, FEATURES))) == programs[0]
