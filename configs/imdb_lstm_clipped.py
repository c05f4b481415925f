"""`imdb_lstm` with one change: gradients are clipped, so that no seed is lost.

    python train.py --config=configs/imdb_lstm_clipped.py

84.5 to 88.1 % of the test reviews with seeds 0 to 19, in the median 86.8 %.
"""

from configs import imdb_lstm
from lstm_jax.config import Config


def get_config() -> Config:
    """The tutorial's settings, and gradients of at most the norm 1."""
    config = imdb_lstm.get_config()
    config.optimizer.clip_norm = 1.0
    return config
