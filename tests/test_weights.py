"""Tests of weights: the same bits come back, and strangers' files are refused."""

import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import save, save_file

import lstm_jax as lj
from lstm_jax import combinators
from lstm_jax.errors import UserError
from lstm_jax.weights import load_weights, save_weights


def assert_same_bits(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, np.ndarray)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == np.asarray(b).tobytes()


def test_round_trip_of_a_cell(tmp_path: Path) -> None:
    cell = combinators.stack(combinators.layer_norm(lj.lstm(5)), lj.gru(4))
    params = cell.init(jax.random.key(0), 3)
    path = tmp_path / "cell.safetensors"
    save_weights(params, path)
    assert_same_bits(load_weights(path), params)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_round_trip_of_every_kind_of_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4))
    values[0] = [np.nan, np.inf, -0.0, 1e-40]
    params = {
        "half": {"b": jnp.asarray(values, jnp.bfloat16), "f": values.astype("f2")},
        "transposed": values.T,
        "scalar": jnp.float32(rng.normal()),
        "empty": np.zeros((0, 3), np.float32),
        "big-endian": values.astype(">f4"),
        "names with spaces and ümlaut": {"1": {"2": rng.integers(0, 9, 5)}},
        "bool": rng.random(7) < 0.5,
    }
    path = tmp_path / "all.safetensors"
    save_weights(params, path)
    expected = {**params, "big-endian": values.astype(np.float32)}
    assert_same_bits(load_weights(path), expected)
    assert load_weights(path)["half"]["b"].dtype == bfloat16


def test_names_are_places_in_the_dict(tmp_path: Path) -> None:
    kernel = np.random.default_rng(0).normal(size=(2, 3))
    save_file({"head/kernel": kernel, "bias": kernel[0]}, tmp_path / "a")
    assert_same_bits(
        load_weights(tmp_path / "a"), {"head": {"kernel": kernel}, "bias": kernel[0]}
    )


@pytest.mark.parametrize(
    "params",
    [
        {"a": {}},
        {"a": None},
        {"a/b": np.zeros(2)},
        {"a": [np.zeros(2)]},
        {"a": {1: np.zeros(2)}},
        {"a/b": np.zeros(2), "a": {"b": np.zeros(2)}},
        np.zeros(2),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_would_not_come_back_is_not_written(params: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested dict of arrays"):
        save_weights(params, tmp_path / "a.safetensors")
    assert not [*tmp_path.iterdir()]


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("executed",)


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
WHOLE = save({"a": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        pickle.dumps(Bomb()),
        b"PK\x03\x04" + bytes(100),
        WHOLE[:-1],
        WHOLE + b"\0",
        (2**63).to_bytes(8, "little") + HEADER,
        len(HEADER).to_bytes(8, "little") + HEADER.replace(b"F32", b"F99") + bytes(8),
        len(HEADER).to_bytes(8, "little") + HEADER.replace(b"[2]", b"[3]") + bytes(8),
        save({"a": np.ones(1), "a/b": np.ones(1)}),
        save({"a/b": np.ones(1), "a/b/c": np.ones(1)}),
    ],
    ids=range(11),
)
def test_files_of_strangers(content: bytes, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))) as raised:
        load_weights(path)
    assert "\n" not in str(raised.value)
    assert "damaged" in str(raised.value)
    assert capsys.readouterr().out == ""


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_weights(tmp_path / "none")
    with pytest.raises(UserError, match="no file"):
        load_weights(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        save_weights({"a": np.zeros(2)}, tmp_path / "none" / "a.safetensors")
