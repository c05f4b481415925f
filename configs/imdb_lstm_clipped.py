"""`imdb_lstm` with one change: gradients are clipped, so that no seed is lost.

    python train.py --config=configs/imdb_lstm_clipped.py

"""

from configs import imdb_lstm
from lstm_jax.config import Config


def get_config() -> Config:
    """The tutorial's settings, and gradients of at most the norm 1."""
    config = imdb_lstm.get_config()
    config.optimizer.clip_norm = 1.0
    return config
