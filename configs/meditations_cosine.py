"""`meditations` with one change: the learning rate falls to zero along a cosine."""

from configs import meditations
from lstm_jax.config import Config


def get_config() -> Config:
    """The tutorial's settings, and a schedule."""
    config = meditations.get_config()
    config.optimizer.schedule = "cosine"
    return config
