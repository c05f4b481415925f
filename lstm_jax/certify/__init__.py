"""Certificates that layers here compute what another library's do.

`python -m lstm_jax.certify --against=torch` runs both on random weights and inputs and
writes the largest differences of outputs, final states, every gradient and a few steps
of the optimizers: `cases.py` has what is run, `ours.py` this package's side, one file a
library the other, `compare.py` the measure.
"""
