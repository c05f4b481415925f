"""A synthetic series of numbers, made by the rules of this file.

    x(t) = 20 + 5 a(t) (sin(2 pi t / 25) + sin(2 pi t / (25 phi))) / 2 + 0.5 e(t)

The two periods, 25 and 40.45 steps (phi is the golden ratio), have no common multiple,
so no stretch of the series ever comes again. The amplitude a drifts: its logarithm is
an autoregressive process, log a(t) = 0.99 log a(t-1) + 0.03 u(t), which forgets in
about 100 steps and keeps a within 0.66 to 1.5 most of the time. The noise e, as u, is
drawn from N(0, 1): no forecast can have a smaller root mean squared error than 0.5.
"""

import numpy as np
from jaxtyping import Float

STEPS = 2000
NOISE = 0.5  # standard deviation

_PERIOD = 25
_GOLDEN_RATIO = (1 + 5**0.5) / 2


def waves(steps: int = STEPS, seed: int = 0) -> Float[np.ndarray, " steps"]:
    """The series, to two decimals; a longer one goes on where a shorter one ends.

    Args:
      steps: how many.
      seed: another seed draws another amplitude and noise.
    """
    draws = np.random.default_rng(seed).normal(size=(steps, 2))
    log_amplitude = np.empty(steps)
    last = 0.0
    for t in range(steps):
        last = log_amplitude[t] = 0.99 * last + 0.03 * draws[t, 0]
    angles = 2 * np.pi * np.arange(steps) / _PERIOD
    both = (np.sin(angles) + np.sin(angles / _GOLDEN_RATIO)) / 2
    # Rounded, for the last bits of a sine are not the same on every machine.
    return np.round(20 + 5 * np.exp(log_amplitude) * both + NOISE * draws[:, 1], 2)
