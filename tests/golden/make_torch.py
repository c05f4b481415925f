"""Writes PyTorch's values and gradients, which test_parity_torch.py compares with.

Run by hand where PyTorch is installed; the tests read only the files:

    python tests/golden/make_torch.py

One file a cell, torch_<cell>.npz, all in float64 and in the layout of this
package: kernels are [input, gates * hidden], and an array `a` of a case lies under
`<case>/a`. The loss is sum(w_y * ys) + sum(w_h * h) + sum(w_c * c), with h and c
the final carry; `grad_a` is its gradient with respect to `a`.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

SEED = 20240607
BATCH, TIME, INPUT, HIDDEN = 4, 7, 3, 5
RAGGED_LENGTHS = (TIME, 1, 0, 4)


class Case(NamedTuple):
    """What differs between two runs of one cell."""

    ragged: bool = False
    reverse: bool = False
    nonzero_carry: bool = False


CASES = {
    "plain": Case(),
    "ragged": Case(ragged=True),
    "reversed": Case(reverse=True),
    "carry": Case(nonzero_carry=True),
    "ragged_reversed": Case(ragged=True, reverse=True),
    "ragged_reversed_carry": Case(ragged=True, reverse=True, nonzero_carry=True),
}


def make_module(cell: str) -> torch.nn.RNNBase:
    """Returns PyTorch's module of the cell, in float64."""
    if cell == "lstm":
        return torch.nn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    if cell == "gru":
        return torch.nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    activation = cell.removeprefix("rnn_")
    return torch.nn.RNN(INPUT, HIDDEN, nonlinearity=activation, dtype=torch.float64)


def randomize(module: torch.nn.RNNBase, cell: str, rng: np.random.Generator) -> None:
    """Overwrites the module's weights with random numbers."""
    with torch.no_grad():
        for weights in module.parameters():
            weights.copy_(torch.from_numpy(rng.uniform(-0.8, 0.8, weights.shape)))
        if cell != "gru":
            # PyTorch adds its two biases; here these cells have the one.
            module.bias_hh_l0.zero_()


def convert(module: torch.nn.RNNBase, cell: str) -> dict[str, torch.Tensor]:
    """Returns the module's weights by this package's names, not yet transposed."""
    weights = {
        "kernel": module.weight_ih_l0,
        "recurrent_kernel": module.weight_hh_l0,
        "bias": module.bias_ih_l0,
    }
    if cell == "gru":
        weights["recurrent_bias"] = module.bias_hh_l0
    return weights


def run_row(
    module: torch.nn.RNNBase,
    xs: Float[torch.Tensor, "time input"],
    carry: dict[str, Float[torch.Tensor, " hidden"]],
    length: int,
    reverse: bool,
) -> tuple[
    Float[torch.Tensor, "time hidden"], dict[str, Float[torch.Tensor, " hidden"]]
]:
    """Runs one row over its valid steps; outputs past them are zero."""
    ys = torch.zeros(TIME, HIDDEN, dtype=torch.float64)
    if length == 0:  # PyTorch refuses an empty sequence.
        return ys, carry
    valid = xs[:length].flip(0) if reverse else xs[:length]
    state = tuple(leaf[None] for leaf in carry.values())
    if "c" in carry:
        outputs, state = module(valid, state)
    else:
        outputs, final = module(valid, state[0])
        state = (final,)
    ys = torch.cat([outputs.flip(0) if reverse else outputs, ys[length:]])
    return ys, {name: leaf[0] for name, leaf in zip(carry, state, strict=True)}


def run_case(
    module: torch.nn.RNNBase, cell: str, case: Case, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns inputs, values and gradients of one case."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape))

    lengths = RAGGED_LENGTHS if case.ragged else (TIME,) * BATCH
    carry_names = ("h", "c") if cell == "lstm" else ("h",)
    scale = 1.0 if case.nonzero_carry else 0.0
    xs = draw(BATCH, TIME, INPUT).requires_grad_()
    carry = {
        name: (scale * draw(BATCH, HIDDEN)).requires_grad_() for name in carry_names
    }

    rows = [
        run_row(
            module,
            xs[row],
            {name: leaf[row] for name, leaf in carry.items()},
            lengths[row],
            case.reverse,
        )
        for row in range(BATCH)
    ]
    values = {"ys": torch.stack([ys for ys, _ in rows])}
    for name in carry_names:
        values[f"{name}_final"] = torch.stack([final[name] for _, final in rows])
    loss_weights = {name: draw(*value.shape) for name, value in values.items()}
    loss = sum((loss_weights[name] * value).sum() for name, value in values.items())

    weights = convert(module, cell)
    inputs = {"xs": xs} | {f"{name}_initial": carry[name] for name in carry_names}
    variables = inputs | weights
    gradients = dict(
        zip(
            variables,
            torch.autograd.grad(loss, tuple(variables.values())),
            strict=True,
        )
    )
    for name in weights:
        gradients[name] = gradients[name].T if "kernel" in name else gradients[name]

    arrays = inputs | values
    arrays |= {f"weight_{name}": weight for name, weight in loss_weights.items()}
    arrays |= {f"grad_{name}": gradient for name, gradient in gradients.items()}
    result = {name: array.detach().numpy() for name, array in arrays.items()}
    result["reverse"] = np.array(case.reverse)
    if case.ragged:
        result["lengths"] = np.array(lengths, np.int32)
    return result


def main() -> None:
    folder = pathlib.Path(__file__).parent
    for index, cell in enumerate(("lstm", "gru", "rnn_tanh", "rnn_relu")):
        rng = np.random.default_rng((SEED, index))
        module = make_module(cell)
        randomize(module, cell, rng)
        arrays = {
            "torch_version": np.array(torch.__version__),
            "seed": np.array(SEED),
        }
        for name, weights in convert(module, cell).items():
            array = weights.detach().numpy()
            arrays[f"params/{name}"] = array.T if "kernel" in name else array
        for name, case in CASES.items():
            result = run_case(module, cell, case, rng)
            arrays |= {f"{name}/{key}": array for key, array in result.items()}
        np.savez_compressed(folder / f"torch_{cell}.npz", **arrays)


if __name__ == "__main__":
    main()
