"""`meditations` with one change: the learning rate falls to zero along a cosine.

    python train.py --config=configs/meditations_cosine.py

Average accuracy of the last 1,000 of 50,000 steps, seeds 0 to 9: 98.2 to 99.3 %, in
the median 99.0 % (the tutorial, at a constant rate, reports above 95 %).
"""

from configs import meditations
from lstm_jax.config import Config


def get_config() -> Config:
    """The tutorial's settings, and a schedule."""
    config = meditations.get_config()
    config.optimizer.schedule = "cosine"
    return config
