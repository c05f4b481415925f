"""`fable_tf1` with one change: the learning rate falls to zero along a cosine."""

from configs import fable_tf1
from lstm_jax.config import Config


def get_config() -> Config:
    """The tutorial's settings, and a schedule."""
    config = fable_tf1.get_config()
    config.optimizer.schedule = "cosine"
    return config
