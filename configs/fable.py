"""Next-word prediction on a fable."""

from lstm_jax.config import Config, base_config


def get_config() -> Config:
    """The default experiment."""
    config = base_config()
    config.num_steps = 600
    config.model.hidden_size = 128
    config.model.num_layers = 2
    config.report.every = 50
    config.report.evaluate_every = 200
    config.checkpoint.every = 200
    return config
