"""Weights from other libraries and back: what is exact, and what is refused.

That converted weights compute the same, tests/test_parity.py shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax import convert
from lstm_jax.convert import flax, keras, tf1, torch
from lstm_jax.convert.files import give_stack, take_stack
from lstm_jax.convert.stacks import stacked
from lstm_jax.convert.weights import GATES, params_shapes
from lstm_jax.convert.written import to_be_told
from lstm_jax.errors import UserError
from lstm_jax.layers import Bidirectional, Stack

FEATURES, HIDDEN = 3, 4


def random_params(cell: str, features: int = FEATURES, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = params_shapes(cell, features, HIDDEN)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def random_stack(cell: str, bidirectional: bool) -> Any:
    """Parameters of two layers, the second on the outputs of the first."""
    stack = {}
    for i, features in enumerate((FEATURES, HIDDEN * (1 + bidirectional))):
        forward, backward = (
            {"cell": random_params(cell, features, 2 * i + j)} for j in range(2)
        )
        both = {"forward": forward, "backward": backward}
        stack[f"layer_{i}"] = both if bidirectional else forward
    return stack


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def to_tf1(params: Any, cell: str) -> Any:
    return convert.to_tf1(params, cell, forget_bias=0.0)


def from_tf1(weights: Any, cell: str) -> Any:
    return convert.from_tf1(weights, cell, forget_bias=0.0)


@pytest.mark.parametrize(
    ("to", "back", "cell"),
    [
        *((convert.to_keras, convert.from_keras, cell) for cell in keras.CELLS),
        *((convert.to_flax, convert.from_flax, cell) for cell in flax.CELLS),
        *((to_tf1, from_tf1, cell) for cell in tf1.CELLS),
    ],
)
def test_there_and_back_is_exact(to: Any, back: Any, cell: str) -> None:
    params = random_params(cell)
    if to is convert.to_flax and cell == "gru":  # which has one bias at r and z
        params["recurrent_bias"][: 2 * HIDDEN] = 0
    theirs = to(params, cell)
    assert_equal(back(theirs, cell), params)
    assert_equal(to(back(theirs, cell), cell), theirs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", torch.CELLS)
def test_there_and_back_of_torch_is_exact(cell: str, bidirectional: bool) -> None:
    stack = random_stack(cell, bidirectional)
    theirs = convert.to_torch(stack, cell, "encoder.")
    assert_equal(convert.from_torch(theirs, cell, "encoder."), stack)
    names = {"encoder.weight_ih_l0", "encoder.bias_hh_l1"}
    names |= {"encoder.weight_hh_l1_reverse"} if bidirectional else set()
    assert names <= theirs.keys()
    assert len(theirs) == 8 * (1 + bidirectional)
    # The rest of a model's weights is left out.
    more = {"head.weight": np.ones((2, 3), np.float32)}
    assert_equal(convert.from_torch(theirs | more, cell, "encoder."), stack)


def test_blocks_are_where_each_library_has_them() -> None:
    """Column 10 g + u is gate g of unit u, in a kernel of one input."""

    def kernel(gates: int) -> Any:
        rows = [[10.0 * gate + unit for gate in range(gates) for unit in range(2)]]
        return np.array(rows * 2, np.float32)

    lstm = {
        "kernel": kernel(4)[:1],
        "recurrent_kernel": kernel(4),
        "bias": kernel(4)[0],
    }
    gru = {"kernel": kernel(3)[:1], "recurrent_kernel": kernel(3), "bias": kernel(3)[0]}
    i, f, g, o = [0, 1], [10, 11], [20, 21], [30, 31]
    r, z, n = i, f, g
    found = convert.to_torch({"layer_0": {"cell": lstm}}, "lstm")
    np.testing.assert_array_equal(found["weight_ih_l0"][:, 0], i + f + g + o)
    np.testing.assert_array_equal(found["bias_ih_l0"], i + f + g + o)
    np.testing.assert_array_equal(found["bias_hh_l0"], 8 * [0])
    np.testing.assert_array_equal(convert.to_keras(lstm, "lstm")["bias"], i + f + g + o)
    joint = convert.to_tf1(lstm, "lstm")
    np.testing.assert_array_equal(joint["kernel"], 3 * [i + g + f + o])
    np.testing.assert_array_equal(joint["bias"], i + g + [9, 10] + o)
    found = convert.to_flax(lstm, "lstm")
    np.testing.assert_array_equal(found["ig"]["kernel"], [g])
    np.testing.assert_array_equal(found["hf"]["bias"], f)

    both = gru | {"recurrent_bias": gru["bias"] + 100}
    rows = convert.to_keras(both, "gru")["bias"]
    np.testing.assert_array_equal(rows[0], z + r + n)
    np.testing.assert_array_equal(rows[1], np.array(z + r + n) + 100)
    before = "gru(reset_after=False)"
    np.testing.assert_array_equal(convert.to_keras(gru, before)["kernel"], [z + r + n])
    found = convert.to_tf1(gru, before)
    np.testing.assert_array_equal(found["gates/kernel"], 3 * [r + z])
    np.testing.assert_array_equal(found["candidate/bias"], n)
    found = convert.to_flax(both, "gru")
    np.testing.assert_array_equal(found["iz"]["bias"], 2 * np.array(z) + 100)
    np.testing.assert_array_equal(found["in"]["bias"], n)
    np.testing.assert_array_equal(found["hn"]["bias"], np.array(n) + 100)
    found = convert.to_torch({"layer_0": {"cell": both}}, "gru")
    np.testing.assert_array_equal(found["bias_hh_l0"], np.array(r + z + n) + 100)


def test_torchs_biases_are_added_and_tf1s_forget_bias_is_folded_in() -> None:
    stack = {"layer_0": {"cell": random_params("lstm")}}
    theirs = convert.to_torch(stack, "lstm")
    theirs["bias_hh_l0"] = np.arange(16, dtype=np.float32)
    bias = convert.from_torch(theirs, "lstm")["layer_0"]["cell"]["bias"]
    np.testing.assert_array_equal(bias, theirs["bias_ih_l0"] + theirs["bias_hh_l0"])

    params = random_params("lstm")
    joint = convert.to_tf1(params, "lstm")
    assert_equal(joint["bias"][:8], to_tf1(params, "lstm")["bias"][:8])
    np.testing.assert_array_equal(joint["bias"][8:12], params["bias"][4:8] - 1)
    back = convert.from_tf1(joint, "lstm")["bias"]
    np.testing.assert_allclose(back, params["bias"], rtol=0, atol=2e-7)


@pytest.mark.parametrize("cell", keras.CELLS)
def test_lists_as_keras_gives_them_and_layers_without_bias(cell: str) -> None:
    params = random_params(cell)
    theirs = convert.to_keras(params, cell)
    assert_equal(convert.from_keras(list(theirs.values()), cell), params)
    zeros = {name: 0 * a if "bias" in name else a for name, a in params.items()}
    assert_equal(convert.from_keras(list(theirs.values())[:2], cell), zeros)
    if cell in torch.CELLS:
        theirs = convert.to_torch({"layer_0": {"cell": params}}, cell)
        theirs = {name: a for name, a in theirs.items() if "bias" not in name}
        found = convert.from_torch(theirs, cell)
        assert_equal(found, {"layer_0": {"cell": zeros}})


def test_results_share_no_memory_with_what_was_given() -> None:
    stack = random_stack("gru", False)
    theirs = convert.to_torch(stack, "gru")
    again = convert.from_torch(theirs, "gru")
    for array in theirs.values():
        array += 1
    assert_equal(again, stack)
    assert_equal(stack, random_stack("gru", False))


def test_params_fit_the_layers() -> None:
    stack = random_stack("lstm", True)
    params = convert.from_torch(convert.to_torch(stack, "lstm"), "lstm")
    params = jax.device_put(params)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, FEATURES)), "float32")
    cell = lj.lstm(HIDDEN)
    carries, ys = Stack((cell, cell), bidirectional=True).apply({"params": params}, xs)
    first, middle = Bidirectional(cell).apply({"params": params["layer_0"]}, xs)
    backward = params["layer_1"]["backward"]["cell"]
    carry, last = lj.unroll(cell, backward, middle, reverse=True)
    np.testing.assert_array_equal(ys[..., HIDDEN:], last)
    np.testing.assert_array_equal(carries[1][1].h, carry.h)
    np.testing.assert_array_equal(carries[0][0].c, first[0].c)


def test_conversions_are_differentiable() -> None:
    theirs = {
        name: jnp.asarray(a)
        for name, a in convert.to_torch(random_stack("lstm", False), "lstm").items()
    }

    def loss(theirs: Any) -> Any:
        params = convert.from_torch(theirs, "lstm")["layer_0"]["cell"]
        return jnp.sum(params["bias"] ** 2) + jnp.sum(params["kernel"] ** 3)

    found = jax.jit(jax.grad(loss))(theirs)
    twice = 2 * (theirs["bias_ih_l0"] + theirs["bias_hh_l0"])
    np.testing.assert_allclose(found["bias_hh_l0"], twice, rtol=1e-6)
    np.testing.assert_allclose(
        found["weight_ih_l0"], 3 * theirs["weight_ih_l0"] ** 2, rtol=1e-6
    )


def lstm_dict(**changed: Any) -> Any:
    theirs = convert.to_torch({"layer_0": {"cell": random_params("lstm")}}, "lstm")
    return {name: a for name, a in (theirs | changed).items() if a is not None}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: convert.from_torch(lstm_dict(bias_hh_l0=None), "lstm"),
            r"\*_l0: there is no bias_hh of PyTorch's lstm among weight_ih, weight_hh",
        ),
        (
            lambda: convert.from_torch(lstm_dict(weight_hr_l0=np.ones((2, 4))), "lstm"),
            r"\*_l0: weight_hr is not known of PyTorch's lstm, which has weight_ih",
        ),
        (
            lambda: convert.from_torch(lstm_dict(bias_ih_l0=np.ones(4)), "lstm"),
            r"bias_ih is \[4\] where .* \[16\] is meant",
        ),
        (
            lambda: convert.from_torch(lstm_dict(), "gru"),
            r"weight_ih is \[16, 3\] where of PyTorch's gru .* \[12, 3\] is meant",
        ),
        (
            lambda: convert.from_torch(lstm_dict(bias_ih_l0=np.ones(16)), "lstm"),
            "bias_hh is float32 and bias_ih is float64: weights must be of one type",
        ),
        (
            lambda: convert.from_torch(lstm_dict(bias_ih_l0=np.ones(16, int)), "lstm"),
            "bias_ih is int64: weights are floating-point",
        ),
        (
            lambda: convert.from_torch(lstm_dict(bias_ih_l0="words"), "lstm"),
            r"bias_ih is \[\] where",
        ),
        (
            lambda: convert.from_torch(
                {f"a.{name}": a for name, a in lstm_dict().items()}, "lstm"
            ),
            r"a.weight_ih_l0 is no weight .*prefix, of 'a.'\)",
        ),
        (
            lambda: convert.from_torch(lstm_dict(), "lstm", "b."),
            r"begins with 'b.' \(its only module has no prefix: leave --prefix out\)",
        ),
        (lambda: convert.from_torch({}, "lstm"), "no name ends with weight_ih_l0"),
        (
            lambda: convert.from_torch(
                {n.replace("l0", "l1"): a for n, a in lstm_dict().items()}, "lstm"
            ),
            r"\*_l0: there is no weight_ih among nothing",
        ),
        (
            lambda: convert.from_torch(lstm_dict(), "gru(reset_after=False)"),
            r"PyTorch has no gru\(reset_after=False\): it has lstm, gru, simple_rnn",
        ),
        (
            lambda: convert.to_flax({}, "gru(reset_after=False)"),
            r"Flax has no gru\(reset_after=False\)",
        ),
        (lambda: convert.to_tf1({}, "gru"), "TensorFlow 1 has no gru: it has lstm"),
        (lambda: convert.to_keras({}, "mgu"), "no conversion of the cell 'mgu': lstm"),
        (
            lambda: convert.to_torch({"cell": random_params("lstm")}, "lstm"),
            "there is no layer_0 among cell: give the parameters of a Stack",
        ),
        (
            lambda: convert.to_torch({"layer_0": random_params("lstm")}, "lstm"),
            "layer_0 holds neither a cell nor forward and backward: give the par",
        ),
        (
            lambda: convert.to_keras(random_params("gru"), "gru(reset_after=False)"),
            r"recurrent_bias is not known of gru\(reset_after=False\), which",
        ),
        (
            lambda: convert.from_keras(6 * [np.ones((3, 4))], "lstm"),
            "6 arrays where one direction of one layer has 3",
        ),
        (
            lambda: convert.from_keras([np.ones(3), np.ones((4, 16))], "lstm"),
            r"kernel is \[3\]: it must be a matrix",
        ),
        (
            lambda: convert.from_flax({"hi": {"kernel": np.ones((4, 4))}}, "lstm"),
            "there is no ii/kernel among hi/kernel",
        ),
        (lambda: convert.to_torch({}, "lstm"), "no layers: give the parameters"),
        (
            lambda: convert.from_tf1(
                {"kernel": np.ones((4, 16)), "bias": np.ones(16)}, "lstm"
            ),
            r"kernel is \[4, 16\], which is not \[inputs \+ units, 4 units\]",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_in_a_line(
    wrong: Callable[[], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        wrong()
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_dict_by_names_is_refused() -> None:
    given = convert.from_torch, convert.from_keras, convert.from_flax, convert.from_tf1
    taken = convert.to_torch, convert.to_keras, convert.to_flax, convert.to_tf1
    for function in (*given, *taken):
        wrong: Any
        for wrong, message in (
            (None, "a dict of arrays by their names, not NoneType"),
            ({1: np.ones(3)}, "named by strings, and 1 is none"),
        ):
            with pytest.raises(UserError, match=message):
                function(wrong, "lstm")
    for layer, message in (
        ({"cell": None}, "a dict of arrays by their names, not NoneType"),
        ({"forward": None, "backward": None}, "forward and backward hold no cell"),
    ):
        with pytest.raises(UserError, match=message):
            convert.to_torch({"layer_0": layer}, "lstm")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("library", "cell"), [("torch", "lstm"), ("keras", "gru"), ("flax", "lstm")]
)
def test_files_there_and_back(
    library: str, cell: str, bidirectional: bool, tmp_path: Path
) -> None:
    stack = random_stack(cell, bidirectional)
    path = tmp_path / "weights.safetensors"
    convert.save_weights(give_stack(stack, library, cell), path)
    assert_equal(take_stack(convert.load_weights(path), library, cell), stack)


def test_layers_are_found_by_their_prefixes() -> None:
    stack = random_stack("gru", True)
    names = (
        "a/forward_gru/c",
        "a/backward_gru/c",
        "b/forward_gru/c",
        "b/backward_gru/c",
    )
    cells = [
        stack[f"layer_{i}"][at]["cell"] for i in range(2) for at in stack["layer_0"]
    ]
    tree: Any = {"head": {"kernel": np.ones((8, 2), np.float32)}}
    for name, cell in zip(names, cells, strict=True):
        for key, array in convert.to_keras(cell, "gru").items():
            tree[f"{name}/{key}"] = array
    assert_equal(take_stack(tree, "keras", "gru", names, True), stack)
    with pytest.raises(UserError, match=r"4 cells .* of a/forward_gru/c, a/backward_"):
        take_stack(tree, "keras", "gru")
    with pytest.raises(UserError, match=r"3 prefixes: .* has two"):
        take_stack(tree, "keras", "gru", names[:3], True)
    with pytest.raises(UserError, match="nowhere: there is no kernel among nothing"):
        take_stack(tree, "keras", "gru", ["nowhere"])
    one = {name: a for name, a in tree.items() if name.startswith(("a/f", "head"))}
    first = {"layer_0": {"cell": cells[0]}}
    assert_equal(take_stack(one, "keras", "gru"), first)
    assert_equal(
        take_stack({"recurrent": first}, "lstm_jax", "gru", ["recurrent"]), first
    )
    with pytest.raises(
        UserError, match="no cell: there is no recurrent_kernel among head"
    ):
        take_stack({"head": tree["head"]}, "keras", "gru")


def test_every_cell_of_a_library_has_its_gate_order() -> None:
    for library in (torch, keras, flax, tf1):
        assert tuple(library.GATE_ORDERS) == library.CELLS
        assert set(library.CELLS) <= GATES.keys()


def test_prefixes_of_a_stack_of_ones_own() -> None:
    """All of them count, by one folder or cell by cell."""
    stack, both = (random_stack("gru", two) for two in (False, True))
    whole = {"recurrent": stack}
    names = [f"recurrent/layer_{i}/cell" for i in range(2)]
    assert_equal(take_stack(whole, "lstm_jax", "gru", names), stack)
    for prefix in ("recurrent", "recurrent/"):
        assert_equal(take_stack(whole, "lstm_jax", "gru", [prefix]), stack)
    with pytest.raises(UserError, match=f"2 cells .* of {', '.join(names)}"):
        take_stack(whole, "lstm_jax", "gru")
    names = [f"layer_{i}/{at}/cell" for i in range(2) for at in both["layer_0"]]
    assert_equal(take_stack(both, "lstm_jax", "gru", names, True), both)


def test_what_prefixes_do_not_say_is_refused() -> None:
    stack = random_stack("lstm", True)
    theirs = convert.to_torch(stack, "lstm", "a.")
    for library, tree, prefixes, both, message in (
        ("torch", theirs, ["a.", "b."], False, "2 prefixes: of torch give one"),
        ("torch", theirs, ["a."], True, "bidirectional is said of the prefixes"),
        ("lstm_jax", stack, [], True, "bidirectional is said of the prefixes"),
        ("lstm_jax", stack, [""], True, "bidirectional is said of the prefixes"),
        ("lstm_jax", stack, ["b"], False, "is no recurrent_kernel among nothing"),
    ):
        with pytest.raises(UserError, match=message):
            take_stack(tree, library, "lstm", prefixes, both)


def test_layers_that_do_not_fit_each_other_are_refused() -> None:
    first, second = (random_params("gru", features) for features in (3, 5))
    assert [*stacked([first, random_params("gru", 4)], False)] == ["layer_0", "layer_1"]
    for cells, both, message in (
        ([second, first], False, "layer 1 takes 3 inputs where layer 0 gives 4: are"),
        (4 * [first], True, "layer 1 takes 3 inputs where layer 0 gives 8: are"),
        ([first, second], True, "layer 0 has .*: 3 inputs, 4 units and 5 inputs, 4 u"),
    ):
        with pytest.raises(UserError, match=message):
            stacked(cells, both)
    tree = {"a": first, "b": second}
    with pytest.raises(UserError, match="layer 1 takes 3 inputs where layer 0 gives 4"):
        take_stack(tree, "lstm_jax", "gru", ["b", "a"])


@pytest.mark.parametrize(
    ("written", "cell", "library", "told"),
    [
        ("lstm", "lstm", "torch", []),
        (" lstm( forget_bias=2, activation=tanh )", "lstm", "torch", []),
        ("lstm(recurrent_init=None, dtype=bfloat16)", "lstm", "tf1", []),
        ("drop_connect(recurrent_dropout(lstm, 0.2), 0.1)", "lstm", "keras", []),
        ("gru(reset_after=True)", "gru", "flax", []),
        ("gru(reset_after = False)", "gru(reset_after=False)", "tf1", []),
        ("simple_rnn(activation=relu)", "simple_rnn", "torch", ["activation=relu"]),
        ("lstm(activation=relu)", "lstm", "keras", ["activation=relu"]),
        ("lstm(gate_activation=relu)", "lstm", "flax", ["gate_activation=relu"]),
        # And what no layer of the library computes.
        ("lstm(activation=relu)", "lstm", "torch", None),
        ("lstm(gate_activation=relu)", "lstm", "tf1", None),
        ("simple_rnn(activation=sigmoid)", "simple_rnn", "torch", None),
        ("gru(reset_after=False)", "gru", "keras", None),
        ("gru", "gru(reset_after=False)", "keras", None),
        ("slstm", "lstm", "lstm_jax", None),
        ("lstm(peephole=True)", "lstm", "lstm_jax", None),
        ("zoneout(lstm, 0.3)", "lstm", "torch", None),
        ("recurrent_dropout(zoneout(lstm, 0.3), 0.1)", "lstm", "keras", None),
        ("residual(lstm)", "lstm", "keras", None),
    ],
)
def test_a_runs_cell_is_what_the_library_computes(
    written: str, cell: str, library: str, told: list[str] | None
) -> None:
    if told is not None:
        assert to_be_told(written, cell, library) == told
        return
    with pytest.raises(
        UserError, match=r"the run's cell is .* does not compute: --cel"
    ):
        to_be_told(written, cell, library)
