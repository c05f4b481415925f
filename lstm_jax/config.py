"""Every field of a config, with its default."""

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from lstm_jax.errors import UserError

# A ConfigDict, whose fields a type checker does not know.
Config: TypeAlias = Any


_MOST_DEVICES = 256  # jax makes no thousands of one processor
_MOST = 2**31  # numbers are int32 on the device


def base_config() -> Config:
    """A config with every field there is; an experiment's file changes some.

    A run stored by an earlier version lacks the fields that came later: their
    defaults here have to mean what that version did.
    """
    config: Any = ConfigDict()
    config.task = "custom"  # a name in lstm_jax/tasks, or a task made in Python
    config.seed = 0
    config.batch_size = 32
    config.num_steps = 0  # updates in all; or
    config.num_epochs = 0  # passes over the training examples: one of the two
    config.patience = 0  # evaluations without a new best, then training ends; 0: never

    config.data = ConfigDict()
    # A file, a text in the package, "tfds:NAME" or "synthetic:NAME".
    config.data.path = ""
    config.data.test_path = ""  # a labelled file to evaluate; "": a part of data.path
    config.data.tfds_dir = ""  # "": TFDS's own, which TFDS_DATA_DIR names
    config.data.holdout = 0.0  # share of training that is the split "validation"
    config.data.text_column = "text"
    config.data.label_column = "label"
    config.data.vocab_size = 10_000  # with padding, start and unknown
    # Ids of a text; of a longer one the end is kept. A language model is trained on
    # that many steps at a time, and a tagged sequence is cut into pieces of it.
    config.data.length = 200
    config.data.padding = "front"  # or "right": steps past the text's end are masked
    config.data.buckets = 1  # padded lengths to batch by, at most 5; with "right" only
    config.data.level = "word"  # or "char": the symbols of a language model
    config.data.limit = 0  # texts read for a language model; 0: all
    config.data.window = 3  # words, or steps, from which the next ones are predicted
    config.data.shift = 0  # pixels that a training image is moved by at most
    config.data.horizon = 1  # steps of a series to forecast
    config.data.column = ""  # of a series; "": the file's last
    config.data.order = "shuffled"  # or "walk", a window a step as in the TF1 tutorials

    config.model = ConfigDict()
    config.model.cell = "lstm"  # lstm_jax/cell_grammar.py
    config.model.hidden_size = 128
    config.model.num_layers = 1
    config.model.bidirectional = False
    config.model.embedding_size = 64  # 0: a word is fed as the one number that it is
    config.model.embedding_init = "normal"  # or "uniform": within 0.05, as in Keras
    config.model.embedding_dropout = 0.0
    config.model.input_dropout = 0.0  # of a layer's inputs, one mask a sequence
    config.model.recurrent_dropout = 0.0  # of h in the product, one mask a sequence
    config.model.dropout = 0.0  # after each recurrent layer
    config.model.pooling = "last"  # or "mean", "max": over the valid steps
    config.model.dense = ()  # sizes of dense layers before the head
    config.model.dense_dropout = 0.0  # after each dense layer
    config.model.head = "softmax"  # or "sigmoid": one logit for two classes
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
    # Updates in a row that are left out where a gradient is not finite; 0: such a step
    # ends the run.
    config.optimizer.skip_nonfinite = 0
    config.optimizer.ema = 0.0  # decay of an average of the parameters; 0: none

    config.sweep = ConfigDict()
    # Many runs at once, each seed with each learning rate: the seeds `seed`, `seed` + 1
    # and so on, and rates in place of `optimizer.learning_rate`. 0 and (): no sweep.
    config.sweep.seeds = 0
    config.sweep.learning_rates = ()

    config.devices = ConfigDict()
    # Devices, or on a processor cores, over which a batch is divided. 0: as many as
    # divide it evenly and leave each 16 rows. In a sweep they divide its members.
    config.devices.count = 0
    # Divide parameters and optimizer state over them too, to save memory.
    config.devices.fsdp = False

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps; also saved at the end, and of each epoch
    config.checkpoint.keep = 2  # the last ones
    config.checkpoint.best = ""  # also keep the best by this, such as "windows_loss"

    config.report = ConfigDict()
    config.report.every = 100  # steps a row of metrics.jsonl
    config.report.evaluate_every = 0  # steps; 0: at the end only, or of each epoch
    config.report.flow_every = 0  # steps; gradient flow (lstm_jax/flow.py); 0: never
    config.report.samples = False  # a line of input, target and prediction each row
    return config


def check_config(config: Config) -> None:
    """Raises a `UserError` where a field is missing, unknown or out of range.

    The fields of the training loop, that is; a task checks those of its data and model.
    """
    if not hasattr(config, "to_dict"):
        raise UserError(
            f"the config is a {type(config).__name__}: get_config has to return what "
            "lstm_jax.config.base_config makes"
        )
    names = [flatten(c.to_dict()).keys() for c in (config, base_config())]
    for missing in sorted(names[1] - names[0]):
        raise UserError(
            f"the config has no field {missing}: start from lstm_jax.config.base_config"
        )
    for unknown in sorted(names[0] - names[1]):
        raise UserError(
            f"the config has a field {unknown}, which nothing reads: the fields are "
            "those of lstm_jax.config.base_config"
        )
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must be at least 0 and below 2**32")
    for name, value in flatten(config.to_dict()).items():
        entries = value if isinstance(value, (tuple, list)) else (value,)
        large = any(isinstance(entry, int) and entry >= _MOST for entry in entries)
        if large and name != "seed":
            raise UserError(f"{name}={value} must be below 2**31")
    for name, value in (
        ("batch_size", config.batch_size),
        ("checkpoint.keep", config.checkpoint.keep),
        ("report.every", config.report.every),
    ):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    for name, value in (
        ("num_steps", config.num_steps),
        ("num_epochs", config.num_epochs),
        ("patience", config.patience),
        ("checkpoint.every", config.checkpoint.every),
        ("report.evaluate_every", config.report.evaluate_every),
        ("report.flow_every", config.report.flow_every),
    ):
        if value < 0:
            raise UserError(f"{name}={value} must be at least 0")
    if (config.num_steps > 0) == (config.num_epochs > 0):
        raise UserError(
            f"num_steps={config.num_steps} and num_epochs={config.num_epochs}: give "
            "one of them, and 0 for the other"
        )
    if config.patience and not config.checkpoint.best:
        raise UserError(
            f"patience={config.patience} counts evaluations without a new best: name "
            "its metric in checkpoint.best"
        )
    swept = _check_sweep(config)
    count = config.devices.count
    divides = swept or config.batch_size % (count or 1) == 0
    if not 0 <= count <= _MOST_DEVICES or not divides:
        raise UserError(
            f"devices.count={count} must divide batch_size={config.batch_size} and be "
            f"at most {_MOST_DEVICES} (0: as many as do)"
        )
    if not 0 <= config.optimizer.ema < 1:
        raise UserError(f"optimizer.ema={config.optimizer.ema} must be in [0, 1)")
    if not 0 <= config.data.holdout < 1:
        raise UserError(f"data.holdout={config.data.holdout} must be in [0, 1)")


_MOST_RUNS = 10_000


def _check_sweep(config: Config) -> bool:
    """Whether there is one, that is of some use."""
    seeds, rates = config.sweep.seeds, tuple(config.sweep.learning_rates)
    if seeds < 0 or config.seed + seeds > 2**32:
        raise UserError(
            f"sweep.seeds={seeds} must be at least 0, and seed + sweep.seeds at most "
            "2**32"
        )
    written = ",".join(map(str, rates))
    for rate in rates:
        number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        if not number or not 0 <= rate < math.inf:
            raise UserError(
                f"sweep.learning_rates={written} must be numbers, finite and at least "
                "0, such as 1e-4,1e-3"
            )
    if len(set(rates)) < len(rates):
        raise UserError(f"sweep.learning_rates={written}: give each of them once")
    count = max(seeds, 1) * max(len(rates), 1)
    if count > _MOST_RUNS:  # a list of them, before any of their arrays, took minutes
        raise UserError(
            f"sweep.seeds={seeds} makes {count} runs of one sweep: make it "
            f"{_MOST_RUNS} at most"
        )
    swept = seeds > 0 or bool(rates)
    for name, value, wanted in (
        ("devices.fsdp", config.devices.fsdp, False),
        ("report.samples", config.report.samples, False),
        ("report.flow_every", config.report.flow_every, 0),
        ("data.buckets", config.data.buckets, 1),
    ):
        if swept and value != wanted:
            raise UserError(
                f"{name}={value} is nothing for a sweep, whose members are trained at "
                f"once: set --config.{name}={wanted}"
            )
    return swept


def refuse_unread(name: str, group: Config, fields: Iterable[str], reader: str) -> None:
    """Raises a `UserError` where fields that nothing reads are not at their default.

    A setting without an effect would be a wrong record of a run.

    Args:
      name: of the group, such as "data".
      group: the group of a config.
      fields: those of its fields that are not read.
      reader: what does not read them.
    """
    default = base_config()[name]
    for field in fields:
        if group[field] != default[field]:
            raise UserError(
                f"{name}.{field}={group[field]!r} is nothing for {reader}: leave it at "
                f"{default[field]!r}"
            )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config's dict by their full names, such as "data.path"."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
