"""Weights from and to PyTorch, Keras, Flax Linen and TensorFlow 1.

Weights are dicts of arrays under the names that the library gives them; none of the
libraries is needed. `from_torch` and its like give the parameters of this package,
`to_torch` and its like take them back. They copy what they are given, take NumPy and
jax arrays (of the latter also traced ones: they are differentiable), and refuse names,
shapes and types that they do not know with a `lstm_jax.errors.UserError` of one line.

>>> import numpy as np
>>> from lstm_jax import convert
>>> state_dict = {  # of torch.nn.LSTM(input_size=3, hidden_size=2)
...   "weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2)),
...   "bias_ih_l0": np.ones(8), "bias_hh_l0": np.ones(8)}
>>> params = convert.from_torch(state_dict, "lstm")
>>> {name: array.shape for name, array in params["layer_0"]["cell"].items()}
{'kernel': (3, 8), 'recurrent_kernel': (2, 8), 'bias': (8,)}

A cell is one of `lstm`, `gru`, `gru(reset_after=False)` and `simple_rnn`, as a config
writes it. Weights do not say which activation they were trained with: a PyTorch
`RNN(nonlinearity="relu")` is `lstm_jax.simple_rnn(H, activation=jax.nn.relu)`.
"""

from lstm_jax.convert.flax import from_flax, to_flax
from lstm_jax.convert.keras import from_keras, to_keras
from lstm_jax.convert.tf1 import from_tf1, to_tf1
from lstm_jax.convert.torch import from_torch, to_torch
from lstm_jax.weights import load_weights, save_weights

__all__ = [
    "from_flax",
    "from_keras",
    "from_tf1",
    "from_torch",
    "load_weights",
    "save_weights",
    "to_flax",
    "to_keras",
    "to_tf1",
    "to_torch",
]
