"""S7."""

from configs import fable_tf1
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of `fable_tf1` on another text."""
    config = fable_tf1.get_config()
    config.data.path = "meditations.txt"
    return config
