"""The cell lab: that it sees what is wrong with a cell, and its page."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from command_runs import assert_user_error

import lstm_jax as lj
from lstm_jax import devices
from lstm_jax.errors import UserError
from lstm_jax.lab import (
    checks,
    cost,
    examine,
    laws,
    own_cell,
    page,
    peer_curves,
    trials,
)

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "two_memories.py"
PAGE = EXAMPLE.with_suffix(".lab.html")


def deaf() -> lj.Cell:
    """Its own sequence function hears of the inputs and the carry alone."""
    cell = lj.simple_rnn(laws.HIDDEN)

    def run(params: Any, xs: Any, carry: Any, **options: Any) -> Any:
        carry, ys, carries = lj.unroll(cell, params, xs, carry, return_carries=True)
        return (carry, ys, carries) if options["return_carries"] else (carry, ys)

    return lj.Cell(cell.init, cell.initial_carry, cell.step, unroll=run)


def averaging() -> lj.Cell:
    """A row sees the others."""
    cell = lj.simple_rnn(laws.HIDDEN)

    def step(params: Any, carry: Any, x: Any) -> Any:
        return cell.step(params, carry, x - jnp.mean(x, axis=0, keepdims=True))

    return lj.Cell(cell.init, cell.initial_carry, step)


@jax.custom_jvp
def bent(x: Any) -> Any:
    return jnp.tanh(x)


@bent.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return bent(*primals), 0.9 * tangents[0] * (1 - bent(*primals) ** 2)


def lost() -> lj.Cell:
    """Learns nothing of one of its parameters."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jax.lax.stop_gradient(extras["gain"]) * jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), h

    return lj.gated(
        *(laws.HIDDEN, 1, gates),
        init_extra=lambda key, size: {"gain": jnp.ones(laws.HIDDEN)},
    )


class Counting(NamedTuple):
    """A state that knows how many steps it has made."""

    h: Any
    steps: Any


def counting() -> lj.Cell:
    """Right, with an integer in its state."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        share = 1 / (1 + carry.steps.astype(zx.dtype))
        h = jnp.tanh(zh + share * zx)
        return Counting(h, carry.steps + 1), h

    def initial_carry(params: Any, batch: int) -> Counting:
        zeros = jnp.zeros((batch, laws.HIDDEN), params["bias"].dtype)
        return Counting(zeros, jnp.zeros((batch,), jnp.int32))

    return lj.gated(laws.HIDDEN, 1, gates, Counting, initial_carry=initial_carry)


def kinked() -> lj.Cell:
    return lj.simple_rnn(laws.HIDDEN, jax.nn.leaky_relu)


def wide_gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
    h = jnp.tanh(zx + zh) + jnp.asarray(np.full(laws.HIDDEN, 0.1))
    return lj.HiddenCarry(h), h


def same_noise() -> lj.Cell:
    def gates(extras: Any, carry: Any, zx: Any, zh: Any, noise: Any) -> Any:
        h = jnp.tanh(zx + zh) * (1.0 if noise is None else noise.step)
        return lj.HiddenCarry(h), h

    def noise(key: Any, params: Any, batch: int, time: int) -> lj.Noise:
        return lj.Noise(step=jnp.full((batch, time, laws.HIDDEN), 0.5))

    return lj.gated(laws.HIDDEN, 1, gates, noise=noise)


@pytest.mark.parametrize(
    ("make", "broken", "kept"),
    [
        (
            deaf,
            ("masks and resets", "masked steps", "holes", "reversal", "resets"),
            ("steps", "rows", "content of padding"),
        ),
        pytest.param(
            *(averaging, ("rows",), ("steps", "reversal")), marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: lj.simple_rnn(laws.HIDDEN, bent),
            ("finite differences",),
            ("gradients", "resets"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(lost, ("finite differences",), ("steps",)), marks=pytest.mark.slow
        ),
        pytest.param(
            *(counting, (), ("finite differences", "float32")), marks=pytest.mark.slow
        ),
        (kinked, (), ("finite differences",)),
        pytest.param(
            lambda: lj.gated(laws.HIDDEN, 1, wide_gates),
            *(("float32",), ("steps",)),
            marks=pytest.mark.slow,
        ),
        (same_noise, ("noise",), ("steps",)),
    ],
    ids=[
        "deaf",
        "averaging",
        "bent",
        "lost",
        "counting",
        "kinked",
        "wide",
        "same_noise",
    ],
)
def test_a_broken_law_is_seen(
    make: Any, broken: tuple[str, ...], kept: tuple[str, ...], monkeypatch: Any
) -> None:
    chosen = {name: laws.LAWS[name] for name in (*broken, *kept)}
    monkeypatch.setattr(laws, "LAWS", chosen)
    found = laws.check(make(), laws.FEATURES, lambda name: None)
    assert [law.name for law in found if not law.holds] == list(broken)
    assert [law.name for law in found if law.holds] == list(kept)


def test_what_no_gradient_reaches() -> None:
    """Of which no law tells."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = carry.h + jnp.tanh(extras["rate"] + 0 * zx)
        return lj.HiddenCarry(h), h

    def blind(size: int) -> lj.Cell:
        extra = {"rate": jnp.ones(size)}
        return lj.gated(size, 1, gates, init_extra=lambda key, width: extra)

    names = ["bias", "kernel", "recurrent_kernel"]
    assert laws.unreached(blind(laws.HIDDEN), laws.FEATURES) == names
    begun = lj.combinators.learned_initial_carry(lj.lstm(laws.HIDDEN))
    assert laws.unreached(begun, laws.FEATURES) == []


@pytest.mark.slow
@pytest.mark.parametrize("cell", [counting, kinked])
def test_integers_and_kinks_obey_all(cell: Any) -> None:
    found = laws.check(cell(), laws.FEATURES, lambda name: None)
    assert [law for law in found if not law.holds] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [lj.slstm, lj.min_lstm, lambda size: lj.gru(size, reset_after=False)]
)
def test_built_in_cells_obey_all(cell: Any) -> None:
    found = laws.check(cell(laws.HIDDEN), laws.FEATURES, lambda name: None)
    assert [law for law in found if not law.holds] == []


@pytest.mark.parametrize("cell", [lj.min_gru, lj.min_lstm])
def test_parallel_cells_hold_their_state(cell: Any, monkeypatch: Any) -> None:
    """To the bit, at masked steps; an associative scan alone would round."""
    chosen = {name: laws.LAWS[name] for name in ("masked steps", "no steps")}
    monkeypatch.setattr(laws, "LAWS", chosen)
    found = laws.check(cell(laws.HIDDEN), laws.FEATURES, lambda name: None)
    assert [law.error for law in found] == [0.0, 0.0]


def test_a_law_that_raises_is_broken(monkeypatch: Any) -> None:
    def fails(given: Any) -> float:
        raise IndexError("first line\nsecond")

    monkeypatch.setattr(laws, "LAWS", {"a": ("It is.", 0.0, fails)})
    (law,) = laws.check(lj.lstm(laws.HIDDEN), laws.FEATURES, lambda name: None)
    assert (law.holds, law.failure) == (False, "IndexError: first line second")


def test_distance() -> None:
    assert checks.distance([jnp.array([4.0, 0])], [jnp.array([4.0, 1])]) == 0.25
    assert checks.distance([0.5], [0.25]) == 0.25
    assert checks.distance([jnp.nan], [jnp.nan]) == np.inf
    assert checks.distance([1.0], [1.0, 2.0]) == np.inf
    assert checks.distance(jnp.zeros(2), jnp.zeros(3)) == np.inf


def test_the_reference_cells_leave_the_baseline() -> None:
    """And their problems are those of today."""
    found = peer_curves.read()
    assert found["date"]
    assert found["command"] == "python -m lstm_jax.lab.peer_curves"
    for problem in examine.quick_trials():
        peer_curves.check(found, problem)
    for name, problem in found["problems"].items():
        assert set(found["curves"][name]) == {"lstm", "gru"}
        for curve in found["curves"][name].values():
            assert page.is_learnt(curve, problem), name
            assert curve["losses"][0][0] > 0.9 * problem["baseline"]
            assert len(curve["losses"]) == problem["seeds"]


@pytest.mark.parametrize(
    ("where", "name"),
    [(examine, "HIDDEN"), (trials, "SEEDS"), (trials, "CLIP_NORM"), (None, "")],
)
def test_curves_of_other_settings_are_refused(
    where: Any, name: str, monkeypatch: Any
) -> None:
    problem = examine.quick_trials()[2]
    if where is None:
        problem = problem._replace(embedding_size=8)
    else:
        monkeypatch.setattr(where, name, 2)
    with pytest.raises(UserError, match="make them anew"):
        peer_curves.check(peer_curves.read(), problem)


def test_the_file_of_curves_is_written_whole(
    call: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    """And not after an argument that is none."""
    done = call("lstm_jax/lab/peer_curves.py", "quick")
    assert_user_error(done, "unexpected argument 'quick'")
    path = tmp_path / peer_curves.FILE
    path.write_text("old")
    monkeypatch.setattr(peer_curves, "__file__", str(tmp_path / "peer_curves.py"))
    monkeypatch.setattr(examine, "learnt", lambda problem, cell, say: {"losses": []})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new: 1 / 0)  # killed just before
        with pytest.raises(ZeroDivisionError):
            peer_curves.main()
    assert path.read_text() == "old"
    peer_curves.main()
    found = json.loads(path.read_text())
    assert found["problems"] == peer_curves.read()["problems"]
    assert list(found["curves"]["the fable"]) == ["lstm", "gru"]


@pytest.mark.parametrize(
    "number",
    [2, *(pytest.param(number, marks=pytest.mark.slow) for number in range(2))],
)
def test_reference_curves_are_what_lstm_learns(number: int) -> None:
    """The first points, trained again."""
    problem = examine.quick_trials()[number]
    stored = peer_curves.read()["curves"][problem.name]["lstm"]
    points = trials.learn(problem, lj.lstm(examine.HIDDEN))
    for place in range(2):
        step, losses = next(points)
        assert step == stored["steps"][place]
        expected = [curve[place] for curve in stored["losses"]]
        np.testing.assert_allclose(losses, expected, rtol=1e-2)


def test_problems_are_what_they_say() -> None:
    inputs, sums = trials.adding(50).draw(jax.random.key(0), 2000)
    marked = np.asarray(inputs[..., 1], bool)
    assert np.all(marked[:, :25].sum(1) == 1)
    assert np.all(marked[:, 25:].sum(1) == 1)
    np.testing.assert_allclose(
        np.where(marked, inputs[..., 0], 0).sum(1), sums, rtol=1e-6
    )
    assert float(jnp.var(sums)) == pytest.approx(1 / 6, rel=0.1)
    inputs, symbols = trials.copy(10).draw(jax.random.key(0), 7)
    ids = np.asarray(inputs).argmax(-1)
    np.testing.assert_array_equal(ids[:, :10], symbols)
    assert set(ids[:, 10:19].ravel()) == {8}  # blanks
    assert set(ids[:, 19]) == {9}  # the sign to begin
    assert ids.shape[1] == 30


def test_a_cell_of_few_features_learns_behind_a_layer() -> None:
    inner = lj.lstm(4)
    cell = trials.widened(inner, 4)
    params = cell.init(jax.random.key(0), 2)
    xs = jax.random.normal(jax.random.key(1), (3, 5, 2))
    _, ys = lj.unroll(cell, params, xs)
    expected = lj.unroll(inner, params["cell"], xs @ params["kernel"])[1]
    np.testing.assert_array_equal(ys, expected)
    carry, y = cell.step(params, cell.initial_carry(params, 3), xs[:, 0])
    np.testing.assert_allclose(y, ys[:, 0], rtol=1e-5)
    assert carry.h.shape == (3, 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no file .*mine.py: give one with a function cell"),
        ("cel = 3", "has no function cell"),
        ("import lstm_jax as lj\ncell = lj.lstm(16)", "cell is a Cell already"),
        ("import nothing_of_that_name", "does not run: ModuleNotFoundError"),
        ("def cell(", "does not run: SyntaxError"),
        ("def cell(size): return 3", "returns a int: it has to return a lstm_jax.Cell"),
        (
            "def cell(size):\n    return 1 / 0",
            r"ZeroDivisionError: division by zero \(mine.py:2\)",
        ),
        (
            "import lstm_jax as lj\n"
            "def cell(size):\n"
            "    def gates(e, c, zx, zh): return c, (zx, zh)\n"
            "    return lj.gated(size, 1, gates)",
            r"the lab takes one array \[B, Y\]",
        ),
        (
            "import lstm_jax as lj\n"
            "def cell(size):\n"
            "    def gates(e, c, zx, zh): raise KeyError('x')\n"
            "    return lj.gated(size, 1, gates)",
            r"a step fails: KeyError: 'x' \(mine.py:3\)",
        ),
        (
            "import lstm_jax as lj\n"
            "def cell(size):\n"
            "    def gates(e, c, zx, zh): return lj.HiddenCarry(zx[1:]), zx\n"
            "    return lj.gated(size, 1, gates)",
            r"carries on h float32\[2, 7\] where it began with h float32\[2, 8\]",
        ),
        (
            "import lstm_jax as lj\n"
            "def cell(size):\n"
            "    def gates(e, c, zx, zh): return (zx, c.c), zx\n"
            "    return lj.gated(size, 1, gates, lj.LSTMCarry)",
            r"return a tuple for a carry: .* \(carry, output\), the carry LSTMCarry\(h",
        ),
        (
            "import lstm_jax as lj\n"
            "def cell(size):\n"
            "    def gates(e, c, zx, zh): return lj.LSTMCarry(zx, c.c)\n"
            "    return lj.gated(size, 1, gates, lj.LSTMCarry)",
            r"return LSTMCarry\(h, c\): they have to return \(carry, output\)",
        ),
        (
            "import lstm_jax as lj\n"
            "def cell(size):\n"
            "    def gates(e, c, zx, zh): return lj.HiddenCarry(zx)\n"
            "    return lj.gated(size, 1, gates)",
            r"return HiddenCarry\(h\): they have to return \(carry, output\)",
        ),
        (
            "import jax.numpy as jnp, lstm_jax as lj\n"
            "def cell(size):\n"
            "    def gates(e, c, zx, zh): return c, c.h\n"
            "    def initial_carry(params, batch): return lj.HiddenCarry(jnp.ones(8))\n"
            "    return lj.gated(size, 1, gates, initial_carry=initial_carry)",
            r"must give arrays \[batch, ...\], got h \[8\]",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_files_that_are_no_cell(text: str | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=reason):
        own_cell.features_of(own_cell.load(path), 8, 5)


@pytest.mark.parametrize("name", ["_mine.py", "$x$.py", "a b.py", ".py", "mine.txt"])
def test_names_that_no_picture_takes(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("import lstm_jax\ncell = lstm_jax.lstm")
    with pytest.raises(UserError, match=r"names the cell in|is no Python file"):
        own_cell.load(tmp_path / name)


def test_cells_that_cannot_be_tried() -> None:
    """They ignore the size that they are asked for, or leave the finite numbers."""
    fixed = own_cell.OwnCell("fixed", "", lambda size: lj.lstm(64))
    with pytest.raises(UserError, match=r"cell\(8\) and cell\(64\) have the same"):
        examine.examine(fixed, [], lambda line: None)

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        c = jnp.where(carry.h > 1.5, jnp.log(carry.c), carry.c)
        return lj.LSTMCarry(carry.h + 1, c), zx

    lost = own_cell.OwnCell("lost", "", lambda n: lj.gated(n, 1, gates, lj.LSTMCarry))
    with pytest.raises(UserError, match=r"^lost: c is not finite after step 3 of"):
        examine.examine(lost, [], lambda line: None)

    def projected(size: int) -> lj.Cell:
        return lj.combinators.project(lj.lstm(size), 4)

    own_cell.check_sizes(own_cell.OwnCell("own", "", projected), 8, 16, 5)
    own_cell.check_finite(own_cell.OwnCell("own", "", lj.slstm), 8, 5)


def test_a_file_runs_as_a_script_does(tmp_path: Path, monkeypatch: Any) -> None:
    """With what lies beside it, and with dataclasses whose types are text."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "a_helper_of_mine.py").write_text(
        "import lstm_jax\nmake = lstm_jax.gru"
    )
    path = tmp_path / "json.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "from a_helper_of_mine import make as cell\n"
        "@dataclasses.dataclass\nclass Sizes:\n    of: int\n"
    )
    own = own_cell.load(path)
    assert own.make(3).fused is not None
    assert sys.modules["json"] is json
    path.write_text("import sys\nsys.exit()")
    with pytest.raises(UserError, match="does not run: SystemExit"):
        own_cell.load(path)
    path.write_text("import sys\ndef cell(size): sys.exit(0)")
    with pytest.raises(UserError, match=r"cell\(8\): SystemExit: 0"):
        own_cell.load(path).make(8)


def test_features(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import lstm_jax as lj\nfrom lstm_jax.combinators import residual\n"
        "def cell(size): return residual(lj.lstm(size))"
    )
    assert own_cell.features_of(own_cell.load(path), 8, 5) == 8
    path.write_text("import lstm_jax as lj\ncell = lj.lstm")
    assert own_cell.features_of(own_cell.load(path), 8, 5) == 5


def test_cost_counts_what_is_there(monkeypatch: Any) -> None:
    for name, value in (("BATCH", 4), ("TIME", 6), ("ROUNDS", 2)):
        monkeypatch.setattr(cost, name, value)
    cells = {"mine": lj.simple_rnn(8), "lstm": lj.lstm(8)}
    found = cost.measure(cells, 3)
    assert found["mine"].parameters == 8 * (3 + 8 + 1)
    assert found["lstm"].parameters == 4 * 8 * (3 + 8 + 1)
    assert found["lstm"].forward_ratio == found["lstm"].training_ratio == 1
    assert found["mine"].path.startswith("fused")
    assert found["mine"].fast
    assert "\n" not in found["mine"].path
    assert found["mine"].layout.startswith("rows ")
    assert found["mine"].autodiff_ratio is not None
    # Floats [6, 4, ...] of 4 bytes: more than the states alone, fewer than all else.
    assert 6 * 4 * 8 * 4 / 1e6 <= found["mine"].saved < found["lstm"].saved


@pytest.mark.slow
def test_cost_is_of_all_devices(monkeypatch: Any) -> None:
    """Memory as well. A cell with a sequence function of its own has no loop."""
    for name, value in (("BATCH", 8), ("TIME", 20), ("ROUNDS", 1)):
        monkeypatch.setattr(cost, name, value)
    cells = {"mine": lj.min_gru(8), "lstm": lj.lstm(8)}
    with jax.set_mesh(devices.make_mesh(4, cost.BATCH)):
        found = cost.measure({"lstm": cells["lstm"]} | cells, 3)
    assert "4 cpu devices" in found["lstm"].path
    assert found["lstm"].peak >= found["lstm"].saved
    assert found["mine"].autodiff_ratio is None
    assert found["mine"].layout == ""


class Seen(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(text: str, source: str, pictures: int) -> None:
    seen = Seen(text)
    assert not {"script", "link", "iframe"} & set(seen.tags)
    assert source in seen.text
    assert seen.tags.count("img") == pictures == len(seen.sources)
    for data in seen.sources:
        kind, coded = data.split(",", 1)
        assert kind == "data:image/png;base64"
        image = matplotlib.image.imread(io.BytesIO(base64.b64decode(coded)))
        assert min(image.shape[:2]) > 100
        assert np.std(image[..., :3]) > 0.01  # something is drawn


@pytest.fixture(scope="module")
def rendered() -> str:
    """The example's page, from its numbers."""
    found = json.loads(PAGE.with_suffix(".json").read_text())
    about = {name: found[name] for name in ("command", "date", "machine", "versions")}
    return page.render(found, peer_curves.read(), about)


def without_pictures(text: str) -> str:
    return re.sub('src="data:[^"]*"', "", text)


def test_the_example_page(rendered: str) -> None:
    """It is of the file beside it, which is short, and all is well there."""
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 20
    assert without_pictures(PAGE.read_text()) == without_pictures(rendered)
    check_page(PAGE.read_text(), source, 5)
    check_page(rendered, source, 5)
    found = json.loads(PAGE.with_suffix(".json").read_text())
    assert not page.broken(found)
    assert set(found["units"]) <= set(found)
    for of in found["cost"].values():
        assert "\n" not in of["path"]
        assert of["peak"] >= of["saved"]
    assert found["source"] == source
    said = {name: law[0] for name, law in laws.LAWS.items() if name != laws.NOISE}
    assert {law["name"]: law["statement"] for law in found["laws"]} == said
    assert found["failed"] == {}
    assert all(law["holds"] for law in found["laws"])
    assert found["cost"]["two_memories"]["fast"]
    assert found["seconds"] < 300
    assert found["problems"] == peer_curves.read()["problems"]
    for problem, curve in found["curves"].items():
        assert page.is_learnt(curve, found["problems"][problem]), problem


def test_gradients_are_followed(monkeypatch: Any) -> None:
    monkeypatch.setattr(examine, "STEPS", 12)
    found = examine.follow(lj.lstm(8))
    for field in ("h", "c"):
        gains = found["lag_gains"][field]
        assert gains[0] == pytest.approx(1.0)
        assert len(gains) == 12
        assert all(0 < gain < 1 for gain in gains[1:])
    assert set(found["saturation"]) == set("ifgoc")
    # sigmoid(1) of a unit whose forget gate sees nothing.
    assert np.median(found["time_constants"]["c"]) == pytest.approx(3.2, abs=0.5)


def test_a_page_says_what_is_wrong() -> None:
    """And shows a source as it is."""
    found = json.loads(PAGE.with_suffix(".json").read_text())
    found["source"] = "a < b & '<script>'"
    found["laws"][3] |= {"holds": False, "error": None, "failure": "it <broke>"}
    found["cost"]["two_memories"] |= {
        "path": "autodiff: it was not made by gated",
        "layout": "",
        "fast": False,
        "autodiff_ratio": 0.02,
    }
    found["cost"]["gru"]["autodiff_ratio"] = None
    found["unreached"] = ["kernel"]
    found["flow"]["two_memories"]["time_constants"] = {
        "fast": [1.0, 3.2, None],
        "slow": [None, 2.0, None],
    }
    curve = found["curves"]["copy, T = 10"]
    curve["losses"][1] = [None] * len(curve["steps"])  # a seed that diverged
    about = {name: found[name] for name in ("command", "date", "machine", "versions")}
    text = page.render(found, peer_curves.read(), about)
    check_page(text, "a < b & '<script>'", 5)
    assert "fast 3.2, slow ∞" in text
    lines = page.summary(found, peer_curves.read())
    assert lines[0][0] is False
    assert lines[0][1].endswith(f"broken: {found['laws'][3]['name']}.")
    assert (False, "Path: autodiff: it was not made by gated.") in lines
    assert page.broken(found)
    assert lines[1][0] is False
    assert lines[1][1].endswith("in float64; zero for all of kernel.")
    assert lines[3][1].endswith(
        '; implementation="autodiff" is faster for it, in 0.02 of that time.'
    )
    copied = next(line for line in lines if line[1].startswith("copy"))
    assert copied[1].endswith("baseline 2.08, learnt below 1.04).")
    assert copied[0] is False
    assert "not finite" in copied[1]


def test_a_cell_that_fails_still_has_a_page(monkeypatch: Any) -> None:
    """A state written in float32, an error under training, and the name of a peer."""

    def initial_carry(params: Any, batch: int) -> lj.HiddenCarry:
        size = params["recurrent_kernel"].shape[0]
        return lj.HiddenCarry(jnp.zeros((batch, size), jnp.float32))

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), h

    def make(size: int) -> lj.Cell:
        return lj.gated(size, 1, gates, initial_carry=initial_carry)

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("of\nits own")

    for where, name in ((cost, "measure"), (examine, "follow"), (examine, "learnt")):
        monkeypatch.setattr(where, name, fails)
    own = own_cell.OwnCell("lstm", "its source", make)
    problem = trials.adding(50)
    found = examine.examine(own, [problem], lambda line: None)
    assert found["name"] == "lstm.py"
    sections = {examine.LAWS, examine.COST, examine.FLOW, problem.name}
    assert found["failed"].keys() == sections
    assert found["failed"][examine.COST] == "RuntimeError: of its own"
    assert "float32" in found["failed"][examine.LAWS]
    assert "\n" not in found["failed"][examine.LAWS]
    text = page.render(found, peer_curves.read(), examine.about("a command"))
    check_page(text, "its source", 0)
    assert text.count("Time and memory: failed: RuntimeError: of its own") == 2
    lines = page.summary(found, peer_curves.read())
    assert [good for good, _ in lines] == [False] * 4


def test_a_cell_of_the_name_of_a_peer_is_itself(monkeypatch: Any) -> None:
    monkeypatch.setattr(laws, "LAWS", {})
    monkeypatch.setattr(laws, "unreached", lambda cell, features: [])
    seen = []

    def measure(cells: dict[str, lj.Cell], features: int) -> dict[str, Any]:
        key = jax.random.key(0)
        seen.append(
            {
                name: jax.eval_shape(lambda key, c=cell: c.init(key, features), key)
                for name, cell in cells.items()
            }
        )
        return {}

    monkeypatch.setattr(cost, "measure", measure)
    monkeypatch.setattr(examine, "follow", lambda cell: cell.fused is None)
    own = own_cell.OwnCell("gru", "", lambda size: lj.gru(size, reset_after=False))
    found = examine.examine(own, [], lambda line: None)
    assert found["flow"] == {"gru.py": True, "lstm": False, "gru": False}
    (layers,) = seen
    assert list(layers) == ["gru.py", "lstm", "gru"]
    assert "recurrent_bias" not in layers["gru.py"]
    assert "recurrent_bias" in layers["gru"]


@pytest.mark.slow
def test_digits_are_measured_on_test_images(monkeypatch: Any) -> None:
    """As `--full` learns them: all zeros to learn from, all ones to be tried on."""
    rng = np.random.default_rng(0)
    digits = {
        f"{split}_{part}": value
        for split, label in (("train", 0), ("test", 1))
        for part, value in (
            ("images", rng.integers(0, 256, (9, 28, 28), np.uint8)),
            ("labels", np.full(9, label)),
        )
    }
    monkeypatch.setattr(examine, "read_mnist", lambda folder: digits)
    further = examine.further_trials()
    assert [p.name for p in further] == [
        *("adding, T = 100", "copy, T = 100", "rows of digits")
    ]
    few = further[2]._replace(num_steps=trials.POINTS, learning_rate=0.03)
    found = trials.curve(few, lj.simple_rnn(4), lambda line: None)
    assert found.losses.shape == (trials.SEEDS, trials.POINTS + 1)
    assert (found.losses[:, -1] > 1.5 * few.baseline).all()
    assert further[2].baseline == pytest.approx(np.log(10))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_what_full_adds_is_learnt(number: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(examine, "read_mnist", lambda folder: {})
    monkeypatch.setattr(trials, "rows_of_digits", lambda digits: trials.fable())
    problem = examine.further_trials()[number]
    few = problem._replace(num_steps=trials.POINTS)
    found = trials.curve(few, lj.lstm(4), lambda line: None)
    assert (found.losses[:, -1] < found.losses[:, 0]).all()


def test_command(call: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """`lab.py` from flags to files, with little to learn."""
    monkeypatch.chdir(tmp_path)
    few = [trials.fable()._replace(num_steps=trials.POINTS)]
    monkeypatch.setattr(examine, "quick_trials", lambda: few)
    monkeypatch.setattr(peer_curves, "check", lambda found, problem: None)
    chosen = {n: laws.LAWS[n] for n in ("steps", "finite differences")}
    monkeypatch.setattr(laws, "LAWS", chosen)
    stored = json.loads(PAGE.with_suffix(".json").read_text())
    costs = {name: cost.Cost(**value) for name, value in stored["cost"].items()}
    monkeypatch.setattr(cost, "measure", lambda cells, features: costs)
    monkeypatch.setattr(examine, "follow", lambda cell: stored["flow"]["lstm"])
    done = call("lab.py", str(EXAMPLE))
    assert done.code == 0, done.err  # though it does not learn
    assert "ok  Laws: 2 of 2 hold." in done.out
    assert "NO  the fable" in done.out  # after twenty steps
    check_page((tmp_path / "two_memories.lab.html").read_text(), EXAMPLE.read_text(), 3)
    found = json.loads((tmp_path / "two_memories.lab.json").read_text())
    assert found["command"].startswith("python lab.py")
    assert len(found["curves"]["the fable"]["losses"]) == trials.SEEDS
    assert not page.broken(found)
    monkeypatch.setattr(page, "render", lambda *_: "")
    for wrong in (
        {"failed": {examine.COST: "IndexError: 3"}, "cost": {}},
        {"unreached": ["kernel"]},
        {"laws": [{**found["laws"][1], "holds": False}]},
    ):
        monkeypatch.setattr(examine, "examine", lambda *_, now=wrong: found | now)
        done = call("lab.py", str(EXAMPLE))
        assert done.code == 1, wrong
        assert "the page: two_memories.lab.html" in done.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give the file of a cell"),
        (["a.py", "b.py"], "unexpected argument 'b.py'"),
        (["a.py"], "there is no file a.py"),
        ([str(EXAMPLE), "--out=a.txt"], "has to end in .html"),
        ([str(EXAMPLE), "--out=nowhere/a.html"], "in a folder that is there"),
    ],
)
def test_errors_in_a_line(call: Any, arguments: list[str], reason: str) -> None:
    done = call("lab.py", *arguments)
    assert done.code == 2
    assert reason in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_what_is_not_the_labs_stays(
    call: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Said before anything is measured."""

    def measured(*arguments: Any) -> Any:
        raise AssertionError("too late")

    monkeypatch.setattr(examine, "examine", measured)
    other = tmp_path / "x.json"
    for text in ('{"mine": 1}', "[]", "no JSON"):
        other.write_text(text)
        done = call("lab.py", str(EXAMPLE), f"--out={tmp_path / 'x.html'}")
        assert_user_error(done, f"{other} is not of the lab")
        assert other.read_text() == text
    (tmp_path / "y.html").mkdir()
    done = call("lab.py", str(EXAMPLE), f"--out={tmp_path / 'y.html'}")
    assert_user_error(done, "y.html cannot be written")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = call("lab.py", str(EXAMPLE), f"--out={tmp_path / 'z.html'}")
    assert_user_error(done, "z.html cannot be written")


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser(tmp_path: Path, rendered: str) -> None:
    """It renders without a network, and every picture is drawn."""
    # The page has no script; this copy tells how large its pictures came out.
    script = (
        "<script>addEventListener('load', () => { document.title = [...document.images]"
        ".map(i => i.complete ? i.naturalWidth : 0).join(' ') })</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(rendered.replace("</body>", script))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += ["--no-first-run", "--disable-sync", "--disable-quic"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    )
    (title,) = re.findall("<title>(.*)</title>", done.stdout)
    widths = [int(width) for width in title.split()]
    assert len(widths) == 5
    assert min(widths) > 300
    assert "In short" in done.stdout


@pytest.mark.slow
def test_in_whole(tmp_path: Path) -> None:
    """As a person calls it; within its time where the machine has nothing else."""
    out = tmp_path / "page.html"
    command = [sys.executable, "lab.py", str(EXAMPLE), f"--out={out}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},  # compiled as users' programs are
    )
    assert "NO " not in done.stdout
    check_page(out.read_text(), EXAMPLE.read_text(), 5)
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["seconds"] < 300
    before = json.loads(PAGE.with_suffix(".json").read_text())
    for name, curve in before["curves"].items():
        now, then = (np.mean(page.final(c)) for c in (found["curves"][name], curve))
        assert now / then == pytest.approx(1, abs=0.5), name
