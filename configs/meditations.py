"""S7."""

from configs import fable_tf1
from lstm_jax.config import Config


def get_config() -> Config:
    """The settings of `fable_tf1` on another text."""
    config = fable_tf1.get_config()
    config.data.path = "meditations.txt"
    return config
