"""Every field of a config, with its default."""

from typing import Any, TypeAlias

from ml_collections import ConfigDict

from lstm_jax.errors import UserError

# A ConfigDict, whose fields a type checker does not know.
Config: TypeAlias = Any


def base_config() -> Config:
    """A config with every field there is; an experiment's file changes some."""
    config = ConfigDict()
    config.task = "next_word"
    config.seed = 0
    config.batch_size = 32
    config.num_steps = 1000

    config.data = ConfigDict()
    config.data.path = "fable.txt"  # a UTF-8 text
    config.data.window = 3  # words from which the next one is predicted
    config.data.order = "shuffled"  # or "walk", a window a step as in the TF1 tutorials

    config.model = ConfigDict()
    config.model.cell = "lstm"  # lstm_jax/cell_grammar.py
    config.model.hidden_size = 128
    config.model.num_layers = 1
    config.model.embedding_size = 64  # 0: a word is fed as the one number that it is
    config.model.dropout = 0.0  # between layers and before the head
    config.model.head_init = "glorot"  # or "normal": kernel and bias from N(0, 1)

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # adam, adamw, rmsprop, rmsprop_tf1, sgd
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"  # or "cosine": to zero at the last step
    config.optimizer.warmup_steps = 0  # linear, from zero
    config.optimizer.clip_norm = 0.0  # of the whole gradient; 0: none
    config.optimizer.momentum = 0.0  # rmsprop, rmsprop_tf1, sgd
    config.optimizer.weight_decay = 0.0  # adamw
    config.optimizer.epsilon = 1e-7  # adam, adamw, rmsprop; 1e-7 as in Keras

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps; one is saved at the end as well
    config.checkpoint.keep = 2  # the last ones
    config.checkpoint.best = ""  # also keep the best by this, such as "windows_loss"

    config.report = ConfigDict()
    config.report.every = 100  # steps a row of metrics.jsonl
    config.report.evaluate_every = 0  # steps; 0: at the end only
    config.report.samples = False  # a line of input, target and prediction each row
    return config


def check_config(config: Config) -> None:
    """Raises a `UserError` where a number of the training loop is out of range."""
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must be at least 0 and below 2**32")
    for name, value in (
        ("batch_size", config.batch_size),
        ("num_steps", config.num_steps),
        ("checkpoint.keep", config.checkpoint.keep),
        ("report.every", config.report.every),
    ):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    for name, value in (
        ("checkpoint.every", config.checkpoint.every),
        ("report.evaluate_every", config.report.evaluate_every),
    ):
        if value < 0:
            raise UserError(f"{name}={value} must be at least 0 (0: only at the end)")
