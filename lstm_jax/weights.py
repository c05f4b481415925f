"""Parameters as one safetensors file: named arrays, and nothing that is executed.

An array's name is its place in the nested dict, joined by "/": "head/kernel".
"""

from pathlib import Path

import numpy as np
import safetensors.numpy

from lstm_jax.cells import Params
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.nested import check_nested, named_leaves, nested
from lstm_jax.reporting import write_file


def save_weights(params: Params, path: str | Path) -> None:
    """Writes a nested dict of arrays; `load_weights` gives back the same bits.

    Args:
      params: the dict; no dict in it is empty, and no name has a "/".
      path: of the file, which is replaced if there is one.

    Raises:
      ValueError: params are no such dict.
      UserError: the file cannot be written, or has no local path.
    """
    check_nested(params)
    # Contiguous: the library writes memory as it lies.
    arrays = {
        name: np.array(array, order="C") for name, array in named_leaves(params).items()
    }
    path = local_path(path)
    try:
        write_file(path, safetensors.numpy.save(arrays))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None


def load_weights(path: str | Path) -> Params:
    """Reads a safetensors file into a nested dict of NumPy's arrays.

    Raises:
      UserError: there is no such file, or it is damaged or of another kind.
    """
    path = local_path(path)
    if not path.is_file():
        raise UserError(f"no file {path}: name a .safetensors file")
    try:
        return nested(safetensors.numpy.load_file(path))
    except Exception as error:  # whatever a stranger's bytes make the library raise
        raise UserError(
            f"{path} is no safetensors file of weights, or damaged ({error}); a "
            "PyTorch model writes one by "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from None
