"""Small problems that tell whether a cell learns, each trained from several seeds.

Shapes: B batch, T time, S seeds. A problem is drawn anew at each step, so nothing can
be learnt by heart, but for the fable, which has to be.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lstm_jax.cells import Cell, Noise, Params
from lstm_jax.data.text import build_vocabulary, encode, read_text, split_words
from lstm_jax.data.windows import windows
from lstm_jax.models import SequenceClassifier, SequenceTagger
from lstm_jax.optimizers import clip_by_global_norm, with_conjugates
from lstm_jax.unroll import unroll

SEEDS = 3
POINTS = 20  # of a curve
_SYMBOLS = 8  # to copy
_COPIED = 10  # of them, in a sequence
MEASURED = 512  # sequences of each point
CLIP_NORM = 1.0  # of the gradient of all parameters

# (inputs [B, T, ...], targets [B, ...])
Batch = tuple[Array, Array]


class Trial(NamedTuple):
    """A problem, and how long it is trained on.

    Attributes:
      name: of the problem.
      what: it is, in a sentence.
      unit: of what is measured, the lower the better.
      baseline: what is measured of a model that knows the targets' distribution alone.
      draw: `draw(key, size)`, a batch.
      model: `model(cell)`, a Flax module whose outputs `losses` takes.
      losses: `losses(outputs, targets)`, of each row [B].
      batch_size: rows a step.
      num_steps: updates.
      learning_rate: of Adam.
      held_out: draws what is measured; None: `draw` does.
      embedding_size: numbers that stand for a word; None: there are no words.
    """

    name: str
    what: str
    unit: str
    baseline: float
    draw: Callable[[PRNGKeyArray, int], Batch]
    model: Callable[[Cell], nn.Module]
    losses: Callable[[Array, Array], Float[Array, " B"]]
    batch_size: int
    num_steps: int
    learning_rate: float
    held_out: Callable[[PRNGKeyArray, int], Batch] | None = None
    embedding_size: int | None = None


class Curve(NamedTuple):
    """How a cell has learnt.

    Attributes:
      steps: of the points.
      losses: at each point, of each seed; not finite where a seed has diverged.
    """

    steps: Int[np.ndarray, " points"]
    losses: Float[np.ndarray, "S points"]


def adding(time: int, num_steps: int = 600) -> Trial:
    """Two of many numbers are marked: what is their sum?

    References:
      Hochreiter and Schmidhuber, Long short-term memory, Neural Computation 9 (1997),
      experiment 4; with numbers in [0, 1) as in Arjovsky, Shah and Bengio,
      arXiv:1511.06464 (2015).
    """

    def draw(key: PRNGKeyArray, size: int) -> Batch:
        numbers_key, *marks = jax.random.split(key, 3)
        numbers = jax.random.uniform(numbers_key, (size, time))
        middle = time // 2
        first = jax.random.randint(marks[0], (size, 1), 0, middle)
        second = jax.random.randint(marks[1], (size, 1), middle, time)
        steps = jnp.expand_dims(jnp.arange(time), 0)
        marked = (steps == first) | (steps == second)
        inputs = jnp.stack([numbers, marked.astype(numbers.dtype)], axis=-1)
        return inputs, jnp.sum(numbers, axis=1, where=marked)

    return Trial(
        name=f"adding, T = {time}",
        what=f"The sum of two marked ones of {time} numbers.",
        unit="mean squared error",
        baseline=1 / 6,  # twice the variance of a number
        draw=draw,
        model=lambda cell: SequenceClassifier((cell,), 1),
        losses=lambda outputs, targets: (outputs[:, 0] - targets) ** 2,
        batch_size=64,
        num_steps=num_steps,
        learning_rate=1e-2,
    )


def copy(time: int, num_steps: int = 800) -> Trial:
    """Ten symbols, a number of blanks and a sign: which symbols were they?

    References:
      Hochreiter and Schmidhuber (1997); in this form Arjovsky, Shah and Bengio,
      arXiv:1511.06464 (2015). Here the loss is of the ten answers alone.
    """
    blank, sign = _SYMBOLS, _SYMBOLS + 1

    def draw(key: PRNGKeyArray, size: int) -> Batch:
        symbols = jax.random.randint(key, (size, _COPIED), 0, _SYMBOLS)
        blanks = jnp.full((size, time - 1), blank)
        signs = jnp.full((size, _COPIED + 1), sign).at[:, 1:].set(blank)
        inputs = jnp.concatenate([symbols, blanks, signs], axis=1)
        return jax.nn.one_hot(inputs, _SYMBOLS + 2), symbols

    def losses(outputs: Array, targets: Array) -> Float[Array, " B"]:
        answers = outputs[:, -_COPIED:]
        each = optax.softmax_cross_entropy_with_integer_labels(answers, targets)
        return jnp.mean(each, axis=1)

    return Trial(
        name=f"copy, T = {time}",
        what=f"{_COPIED} symbols of {_SYMBOLS}, said again after {time} steps.",
        unit="cross-entropy of a symbol, nats",
        baseline=math.log(_SYMBOLS),
        draw=draw,
        model=lambda cell: SequenceTagger((cell,), _SYMBOLS),
        losses=losses,
        batch_size=64,
        num_steps=num_steps,
        learning_rate=1e-2,
    )


def fable(num_steps: int = 600) -> Trial:
    """The fable of `configs/fable.py`: which word follows three words?"""
    words = split_words(read_text("fable.txt"))
    vocabulary = build_vocabulary(words)
    inputs, targets = (jnp.asarray(a) for a in windows(encode(vocabulary, words), 3))
    size, embedding_size = vocabulary.get_vocab_size(), 32
    share = np.bincount(targets) / len(targets)
    share = share[share > 0]

    def draw(key: PRNGKeyArray, size: int) -> Batch:
        chosen = jax.random.randint(key, (size,), 0, len(targets))
        return inputs[chosen], targets[chosen]

    return Trial(
        name="the fable",
        what=f"The word after three words of a text of {len(words)}.",
        unit="cross-entropy of a word, nats",
        baseline=float(-np.sum(share * np.log(share))),
        draw=draw,
        model=lambda cell: SequenceClassifier((cell,), size, size, embedding_size),
        losses=optax.softmax_cross_entropy_with_integer_labels,
        batch_size=32,
        num_steps=num_steps,
        learning_rate=3e-3,
        embedding_size=embedding_size,
    )


def rows_of_digits(digits: dict[str, np.ndarray], num_steps: int = 1000) -> Trial:
    """MNIST, a row of an image a step, as `configs/mnist_lstm.py`.

    Args:
      digits: images and labels of both splits, as `read_mnist` gives them.
      num_steps: updates.
    """

    def drawing(split: str) -> Callable[[PRNGKeyArray, int], Batch]:
        pixels = jnp.asarray(digits[f"{split}_images"])
        classes = jnp.asarray(digits[f"{split}_labels"])

        def draw(key: PRNGKeyArray, size: int) -> Batch:
            chosen = jax.random.randint(key, (size,), 0, len(classes))
            return pixels[chosen].astype(jnp.float32) / 255, classes[chosen]

        return draw

    return Trial(
        name="rows of digits",
        what="The digit, of an image of MNIST that is read row by row.",
        unit="cross-entropy of a digit, nats",
        baseline=math.log(10),
        draw=drawing("train"),
        held_out=drawing("test"),
        model=lambda cell: SequenceClassifier((cell,), 10),
        losses=optax.softmax_cross_entropy_with_integer_labels,
        batch_size=64,
        num_steps=num_steps,
        learning_rate=1e-3,
    )


def widened(cell: Cell, size: int) -> Cell:
    """A cell that takes `size` features, behind a linear layer to that many.

    So a cell that takes only as many features as it has units learns the same problems.
    """

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        keys = jax.random.split(key)
        kernel = jax.nn.initializers.glorot_uniform()(keys[0], (input_size, size))
        return {"kernel": kernel, "cell": cell.init(keys[1], size)}

    def initial_carry(params: Params, batch_size: int) -> Any:
        return cell.initial_carry(params["cell"], batch_size)

    def step(params: Params, carry: Any, x: Array, *noise: Any) -> tuple[Any, Any]:
        return cell.step(params["cell"], carry, x @ params["kernel"], *noise)

    def noise(key: PRNGKeyArray, params: Params, *sizes: int) -> Noise:
        assert cell.noise is not None
        return cell.noise(key, params["cell"], *sizes)

    def run(params: Params, xs: Array, carry: Any, **options: Any) -> Any:
        return unroll(cell, params["cell"], xs @ params["kernel"], carry, **options)

    drawn = None if cell.noise is None else noise
    return Cell(init, initial_carry, step, drawn, None, run)


def learn(trial: Trial, cell: Cell, seeds: int = SEEDS) -> Iterator[tuple[int, Any]]:
    """Trains a cell on a problem, all seeds in one program.

    Args:
      trial: the problem.
      cell: the cell of the one recurrent layer.
      seeds: of parameters and batches.

    Yields:
      The step, and the losses of all seeds [S] there, on sequences not trained on
      (the fable: on the same ones). The first is of untrained parameters.
    """
    model, every = trial.model(cell), trial.num_steps // POINTS
    optimizer = with_conjugates(
        optax.chain(clip_by_global_norm(CLIP_NORM), optax.adam(trial.learning_rate))
    )

    def mean_loss(params: Any, batch: Batch, key: PRNGKeyArray | None) -> Array:
        inputs, targets = batch
        outputs: Any = model.apply(
            {"params": params},
            inputs,
            deterministic=key is None,
            rngs={} if key is None else {"dropout": key},
        )
        return jnp.mean(trial.losses(outputs, targets))

    def begin(key: PRNGKeyArray) -> tuple[Any, Any]:
        params = model.init(key, trial.draw(key, 1)[0])["params"]
        return params, optimizer.init(params)

    def train(state: Any, key: PRNGKeyArray, first: Array) -> Any:
        def step(state: Any, number: Array) -> tuple[Any, None]:
            params, opt_state = state
            batch_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
            batch = trial.draw(batch_key, trial.batch_size)
            gradient = jax.grad(mean_loss)(params, batch, noise_key)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, state, first + jnp.arange(every))[0]

    measured = (trial.held_out or trial.draw)(jax.random.key(2**31), MEASURED)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    state = jax.jit(jax.vmap(begin))(keys)
    run = jax.jit(jax.vmap(train, in_axes=(0, 0, None)), donate_argnums=0)
    measure = jax.jit(
        jax.vmap(functools.partial(mean_loss, key=None), in_axes=(0, None))
    )
    for step in range(0, trial.num_steps + 1, every):
        if step:
            state = run(state, keys, jnp.int32(step - every))
        yield step, measure(state[0], measured)


def curve(trial: Trial, cell: Cell, say: Callable[[str], None]) -> Curve:
    """A cell's learning curve.

    Args:
      trial: the problem.
      cell: the cell.
      say: is given a line of progress for every few points.
    """
    steps, losses = [], []
    for step, found in learn(trial, cell):
        steps.append(step)
        losses.append(np.asarray(found, np.float64))
        if step and step % (trial.num_steps // 4) == 0:
            shown = ", ".join(f"{loss:.3g}" for loss in losses[-1])
            say(f"{trial.name}: step {step} of {trial.num_steps}, {shown}")
    return Curve(np.asarray(steps), np.stack(losses, axis=1))
