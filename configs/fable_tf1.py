"""S6."""

from lstm_jax.config import Config, base_config


def get_config() -> Config:
    """The tutorial's experiment, to the letter."""
    config = base_config()
    config.batch_size = 1
    config.num_steps = 50_000
    config.data.order = "walk"
    config.model.cell = "lstm(recurrent_init=None)"  # one Glorot draw over both kernels
    config.model.hidden_size = 512
    config.model.num_layers = 2
    config.model.embedding_size = 0
    config.model.head_init = "normal"
    config.optimizer.name = "rmsprop_tf1"
    config.checkpoint.every = 10_000
    config.report.every = 1000
    config.report.samples = True
    return config
