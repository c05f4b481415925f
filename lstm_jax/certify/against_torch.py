"""PyTorch's side: `nn.LSTM`, `nn.GRU` and `nn.RNN`, masked by packed sequences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from lstm_jax.certify.cases import Arrays, Case, Problem
from lstm_jax.certify.peer import RATE, Optimizer, Peer, load
from lstm_jax.convert.torch import GATE_ORDERS


def run(case: Case, problem: Problem) -> tuple[Arrays, Arrays]:
    """As `Peer.run`."""
    torch = load("torch")
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(case.cell, torch.nn.RNN)
    rnn = make is torch.nn.RNN
    module = make(
        case.shape.features,
        case.shape.hidden,
        num_layers=case.layers,
        bidirectional=case.bidirectional,
        batch_first=True,
        dtype=getattr(torch, case.dtype),
        **({"nonlinearity": case.activation} if rnn else {}),
    )
    weights = {name: torch.from_numpy(a) for name, a in problem.weights.items()}
    module.load_state_dict(weights)
    inputs = {
        name: torch.tensor(array, requires_grad=True)
        for name, array in problem.inputs.items()
    }
    xs = inputs["xs"]
    time = case.shape.time
    lengths = problem.lengths
    lengths = np.full(case.shape.batch, time) if lengths is None else lengths
    lengths = torch.from_numpy(lengths).long()
    steps = torch.arange(time)[None]
    order = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)

    def turned(sequences: Any) -> Any:
        """Each row's steps in reverse, but its padding at the end: no layer does it."""
        at = order[:, :, None].expand(-1, -1, sequences.shape[2])
        return torch.gather(sequences, 1, at)

    xs = turned(xs) if case.reverse else xs
    if case.masked:
        xs = torch.nn.utils.rnn.pack_padded_sequence(
            xs, lengths, batch_first=True, enforce_sorted=False
        )
    state = [inputs[f"initial_{leaf}"] for leaf in case.carry]
    ys, final = module(xs, tuple(state) if len(state) > 1 else state[0])
    if case.masked:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(
            ys, batch_first=True, total_length=time
        )
    ys = turned(ys) if case.reverse else ys
    final = final if len(state) > 1 else (final,)
    states = {f"final_{leaf}": a for leaf, a in zip(case.carry, final, strict=True)}
    values = {"ys": ys} | states
    loss = sum(
        (torch.from_numpy(problem.factors[name]) * value).sum()
        for name, value in values.items()
    )
    variables = inputs | dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, tuple(variables.values()))
    return (
        {name: value.detach().numpy() for name, value in values.items()},
        {n: g.numpy() for n, g in zip(variables, gradients, strict=True)},
    )


def _updating(make: str, **options: Any) -> Callable[[Arrays], Any]:
    """An optimizer of `torch.optim`, as `Optimizer.theirs`."""

    def theirs(weights: Arrays) -> Callable[[Arrays], Arrays]:
        torch = load("torch")
        parameters = {
            name: torch.nn.Parameter(torch.tensor(a)) for name, a in weights.items()
        }
        optimizer = getattr(torch.optim, make)(parameters.values(), lr=RATE, **options)

        def update(gradients: Arrays) -> Arrays:
            for name, parameter in parameters.items():
                parameter.grad = torch.tensor(gradients[name])
            optimizer.step()
            return {n: p.detach().numpy().copy() for n, p in parameters.items()}

        return update

    return theirs


def optimizers() -> dict[str, Optimizer]:
    """`torch.optim`'s, with its defaults but for the learning rate."""
    return {
        "SGD": Optimizer(_updating("SGD"), optax.sgd(RATE)),
        "Adam": Optimizer(_updating("Adam"), optax.adam(RATE, eps=1e-8)),
        "RMSprop": Optimizer(
            _updating("RMSprop"),
            optax.rmsprop(RATE, decay=0.99, eps=1e-8, eps_in_sqrt=False),
        ),
    }


PEER = Peer(
    library="torch",
    title="PyTorch",
    versions=lambda: {"torch": load("torch").__version__},
    cells=("lstm", "gru", "simple_rnn", "simple_rnn(activation=relu)"),
    gate_orders=GATE_ORDERS,
    layers=2,
    run=run,
    optimizers=optimizers,
    held=lambda case, name: "bias_hh" in name and case.cell != "gru",
    notes=(
        "Masked: packed sequences. Reversed: PyTorch reverses in bidirectional modules "
        "alone, so its inputs and outputs are turned around by row.",
        "PyTorch's LSTM and RNN train two biases a gate, whose sum is the one bias "
        "here. In the steps of the optimizers bias_hh is held: where both are trained, "
        "their sum moves twice as far a step of SGD. Gradients are of both.",
        "Adam and RMSprop here are Optax's, with PyTorch's constants: Adam's epsilon "
        "1e-8 after the correction of the moments, RMSprop's alpha 0.99 and epsilon "
        "1e-8 outside the root.",
    ),
)
