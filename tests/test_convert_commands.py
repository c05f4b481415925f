"""The command lines of conversion and certificates, and the page on them."""

import contextlib
import errno
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_runs import BEST, READS_CONFIG, ROOT, Finished, Trained, assert_user_error

from lstm_jax import convert
from lstm_jax.certify import against_tf1, compare
from lstm_jax.certify.cases import SHAPES, Case
from lstm_jax.convert.files import give_stack, take_stack
from lstm_jax.workdirs import load_params, read_config

pytestmark = READS_CONFIG  # the run that some of them read

CONVERT = "lstm_jax/convert/__main__.py"
CERTIFY = "lstm_jax/certify/__main__.py"
Call = Callable[..., Finished]


def of_torch(path: Path) -> dict[str, np.ndarray]:
    """A model with an LSTM of two layers in both directions and a dense layer."""
    rng = np.random.default_rng(0)
    state_dict = {}
    for layer, inputs in enumerate((8, 32)):
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            shapes = {"weight_ih": (64, inputs), "weight_hh": (64, 16)}
            shapes |= {"bias_ih": (64,), "bias_hh": (64,)}
            for name, shape in shapes.items():
                state_dict[f"encoder.{name}_{suffix}"] = rng.normal(size=shape)
    state_dict |= {"head.weight": rng.normal(size=(4, 32)), "head.bias": np.ones(4)}
    state_dict = {name: a.astype(np.float32) for name, a in state_dict.items()}
    convert.save_weights(state_dict, path)
    return state_dict


def test_torch_to_here_and_back(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stack, back = (tmp_path / f"{name}.safetensors" for name in "abc")
    state_dict = of_torch(model)
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--file=~/a.safetensors", "--cell=lstm", "--out=~/b.safetensors"]
    done = call(CONVERT, "--from=torch", "--prefix=encoder.", *options)
    assert done.code == 0, done.err
    assert "layer_1/backward/cell/recurrent_kernel [16, 64] float32\n" in done.out
    found = convert.load_weights(stack)
    expected = convert.from_torch(state_dict, "lstm", "encoder.")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    options = [f"--file={stack}", "--cell=lstm", f"--out={back}"]
    assert call(CONVERT, "--to=torch", *options).code == 0
    found = convert.load_weights(back)
    for name, array in found.items():
        given = state_dict[f"encoder.{name}"]
        if name.startswith("bias_ih"):
            given = given + state_dict[f"encoder.{name.replace('ih', 'hh')}"]
        np.testing.assert_array_equal(array, 0 * given if "bias_hh" in name else given)
    assert len(found) == 16


def test_a_runs_layers_to_another_library(
    call: Call, trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "flax.safetensors"
    options = [f"--file={trained.workdir}", "--cell=lstm", f"--out={out}"]
    done = call(CONVERT, "--to=flax", *options)
    assert done.code == 0, done.err
    params = load_params(trained.workdir, BEST)["recurrent"]
    found = convert.load_weights(out)
    jax.tree.map(
        np.testing.assert_array_equal, found, give_stack(params, "flax", "lstm")
    )
    jax.tree.map(
        np.testing.assert_array_equal, take_stack(found, "flax", "lstm"), params
    )


def test_the_forget_bias_of_tf1(call: Call, tmp_path: Path) -> None:
    stack, joint = (tmp_path / f"{name}.safetensors" for name in "ab")
    params = convert.from_torch(of_torch(tmp_path / "model"), "lstm", "encoder.")
    params = {"layer_0": params["layer_0"]["forward"]}
    convert.save_weights(params, stack)
    options = [f"--file={stack}", "--cell=lstm", f"--out={joint}"]
    done = call(CONVERT, "--to=keras", "--forget_bias=0", *options)
    assert_user_error(done, "--forget_bias is of TensorFlow 1's lstm alone")
    assert call(CONVERT, "--to=tf1", "--forget_bias=2.5", *options).code == 0
    bias = params["layer_0"]["cell"]["bias"]
    found = convert.load_weights(joint)["layer_0"]["cell"]["bias"]
    np.testing.assert_array_equal(found[32:48], bias[16:32] - np.float32(2.5))
    for more, off in (([], 1.5), (["--forget_bias=2.5"], 0)):  # the default is 1
        back = tmp_path / f"{off}.safetensors"
        options = [f"--file={joint}", "--cell=lstm", f"--out={back}", *more]
        assert call(CONVERT, "--from=tf1", *options).code == 0
        found = convert.load_weights(back)["layer_0"]["cell"]["bias"]
        expected = bias[16:32] - np.float32(off)
        np.testing.assert_allclose(found[16:32], expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found[:16], bias[:16])


def test_a_runs_own_cell_counts(
    call: Call, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "out.safetensors"
    shutil.copytree(trained.workdir, run)
    (run / "identity.json").unlink()  # which knows that these are not its cells
    config = read_config(run)
    monkeypatch.setattr("lstm_jax.workdirs.read_config", lambda _: config)
    options = [f"--file={run}", "--cell=lstm", f"--out={out}"]
    config.model.cell = "zoneout(lstm, 0.3)"
    done = call(CONVERT, "--to=torch", *options)
    assert_user_error(done, "the run's cell is zoneout(lstm, 0.3), which torch's lstm")
    config.model.cell = "zoneout(lstm"
    assert_user_error(call(CONVERT, *options), "'zoneout(lstm' does not parse")
    assert not out.exists()
    config.model.cell = "lstm(activation=relu)"
    done = call(CONVERT, "--to=keras", *options)
    assert done.code == 0
    assert done.err == (
        f"whether the config of {run} describes the model that was trained is not "
        "known: it does not say so\ntrained with activation=relu: tell the cell there\n"
    )


def test_what_cannot_be_converted_ends_in_a_line(call: Call, tmp_path: Path) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    of_torch(model)
    options = ["--from=torch", f"--file={model}", f"--out={out}"]
    done = call(CONVERT, *options, "--cell=lstm")
    assert_user_error(done, "choose the module by its prefix, of 'encoder.'")
    done = call(CONVERT, *options, "--cell=gru", "--prefix=encoder.")
    assert_user_error(done, "encoder.*_l0", "is [64, 8] where of PyTorch's gru")
    assert_user_error(call(CONVERT, *options), "--cell must have a value")
    done = call(CONVERT, *options, "--cell=mgu")
    assert_user_error(done, "should be one of <lstm|gru|")
    done = call(CONVERT, f"--file={tmp_path}", "--cell=lstm", f"--out={out}")
    assert_user_error(done, "no run in")
    assert not out.exists()


@pytest.fixture
def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("simple_rnn", "float64", SHAPES[2], masked=True)
    monkeypatch.setattr(compare, "cases", lambda cells, layers: [case])


@pytest.mark.usefixtures("one_case")
def test_a_certificate_says_whether_it_passed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = call(CERTIFY, "--against=tf1", "--out=~/new")
    assert done.code == 0, done.err
    assert done.out == f"2 comparisons, 0 failed: {tmp_path / 'new' / 'tf1.md'}\n"
    assert "passed float64 1x1x1x1 simple_rnn, masked: gradient" in done.err
    assert (
        "| float64 | 1x1x1x1 | simple_rnn | masked |"
        in (tmp_path / "new" / "tf1.md").read_text()
    )
    found = json.loads((tmp_path / "new" / "tf1.json").read_text())
    assert found["passed"]
    assert found["device"] == "cpu"
    assert ", on cpu.\n" in (tmp_path / "new" / "tf1.md").read_text()

    def nothing(case: Any, problem: Any) -> Any:
        config: Any = jax.config
        assert config.jax_default_matmul_precision == "highest"
        values, gradients = against_tf1.run(case, problem)
        return {name: np.nan * a for name, a in values.items()}, gradients

    monkeypatch.setattr(against_tf1, "PEER", against_tf1.PEER._replace(run=nothing))
    done = call(CERTIFY, "--against=tf1", f"--out={tmp_path}")
    assert done.code == 1
    assert "2 comparisons, 1 failed" in done.out
    found = json.loads((tmp_path / "tf1.json").read_text())
    assert [row["passed"] for row in found["results"]] == [False, True]
    assert found["results"][0]["relative"] is None


@pytest.mark.usefixtures("one_case")
def test_a_folder_is_tried_before_the_cases_and_a_full_disk_told(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    command = CERTIFY, "--against=tf1", f"--out={tmp_path}"
    message = f"cannot write to {tmp_path} (No space left on device): name another"
    with monkeypatch.context() as patch:
        patch.setattr("lstm_jax.reporting.write_file", full)
        done = call(*command)
    assert done.code == 2
    assert done.err.startswith("passed float64")
    assert done.err.splitlines()[2:] == [f"error: {message} folder in --out"]
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert_user_error(call(*command), message)
    assert not [*tmp_path.iterdir()]


def test_a_library_that_is_not_there_is_told(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)
    for library, package in (("torch", "torch"), ("keras", "tensorflow")):
        done = call(CERTIFY, f"--against={library}", f"--out={tmp_path / 'new'}")
        assert_user_error(
            done, f"{package} is not installed", "install -e '.[certify]'"
        )
    assert not (tmp_path / "new").exists()
    assert_user_error(call(CERTIFY), "--against must have a value")


def test_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "converting.md").read_text()
    first, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with contextlib.chdir(tmp_path):
        try:
            exec(first, {})
        except ImportError:
            of_torch(Path("model.safetensors"))
        names: dict[str, Any] = {}
        for block in blocks:
            exec(block, names)
        given = convert.load_weights("model.safetensors")
        back = convert.load_weights("trained.safetensors")
    assert back.keys() == given.keys()
    np.testing.assert_array_equal(
        back["encoder.weight_hh_l1_reverse"], given["encoder.weight_hh_l1_reverse"]
    )
    assert np.isfinite(names["logits"]).all()
    assert names["ys"].shape == (4, 10, 32)
    assert not names["ys"][1, 3:].any()
