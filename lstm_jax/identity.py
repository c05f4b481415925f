"""What makes a run, beside its config: what it computes, and of which data."""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from lstm_jax import devices, traced_digest
from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.evaluation import means_of
from lstm_jax.tasks.task import Examples, Task
from lstm_jax.unroll import AUTO

IDENTITY_FILE = "identity.json"

# By the first field that differs: what the folder holds.
_NAMES = {
    "data": "a run on other data (the examples differ)",
    "init": "a run of another model or initialisation",
    "loss": "a run of another model or training loss",
    "evaluation": "a run of another model or evaluation",
}


class Identity(NamedTuple):
    """What a run computes, and of which data: digests.

    Attributes:
      data: of all examples: values, order, splits.
      init: of the function that makes the initial parameters.
      loss: of a batch's training loss and its gradient.
      evaluation: of a batch's metrics, without dropout.
      prediction: of what predict.py computes, where the evaluation computes the same
        of a batch's inputs; None: it does not; "": not known.
      inputs: types and shapes of these inputs, by name.
      versions: of the packages that were there.
    """

    data: str
    init: str
    loss: str
    evaluation: str
    prediction: str | None
    inputs: dict[str, Any]
    versions: dict[str, str]


class Predictor(NamedTuple):
    """What predict.py computes, of a model made from a config and a run's files.

    Attributes:
      logits: `logits(params, batch, carry)`; a batch has "inputs" and maybe "lengths".
      params: types and shapes of the model's parameters.
      carry: `carry(batch_size)`, types and shapes.
    """

    logits: Callable[..., PyTree]
    params: PyTree
    carry: Callable[[int], PyTree]


def identify(config: Config, task: Task, predictor: Predictor | None) -> Identity:
    """Return the identity of a run.

    Equal in every process, on any devices and wherever the data lies.

    Args:
      config: of the run.
      task: what it trains.
      predictor: what predict.py would make of the config; None: nothing.

    Raises:
      Exception: what the task's own functions raise where they are traced.
    """
    size = config.batch_size

    def init(key: Any) -> Any:
        return task.init(key)

    def carry() -> Any:
        return task.carry(size)

    def loss(params: Any, batch: Any, weight: Any, key: Any, carry: Any) -> Any:
        def total(params: Any) -> tuple[Array, Any]:
            sums, after = task.loss(params, batch, weight, key, carry)
            return sums["loss"], (sums, after)

        # The gradient too: a derivative of one's own may be all that differs.
        return jax.grad(total, has_aux=True)(params), task.carry(size)

    def evaluation(params: Any, batch: Any, weight: Any, carry: Any) -> Any:
        return task.loss(params, batch, weight, None, carry)

    # On one device: several would be seen in what is traced.
    with jax.set_mesh(devices.one_device()), AUTO("autodiff"):
        key = jax.eval_shape(lambda: jax.random.key(0))
        begun = traced_digest.trace(init, key=key)
        batch = jax.eval_shape(functools.partial(_rows, size), task.examples[0])
        shapes = {
            "params": begun.shapes,
            "batch": batch,
            "weight": jax.ShapeDtypeStruct((size,), jnp.float32),
            "carry": jax.eval_shape(carry),
        }
        evaluated = traced_digest.trace(evaluation, **shapes)
        prediction, inputs = _predicted(predictor, begun.shapes, batch, evaluated)
        return Identity(
            data=_data(task, config),
            init=begun.digest,
            loss=traced_digest.trace(loss, **shapes, key=key).digest,
            evaluation=_hash(evaluated.digest, _reported(task, evaluated.shapes[0])),
            prediction=prediction,
            inputs=inputs,
            versions=versions(),
        )


def _rows(size: int, examples: Examples) -> Examples:
    """A batch's types and shapes; arrays of NumPy become jax's."""
    return jax.tree.map(lambda a: jnp.asarray(a)[jnp.zeros(size, int)], examples)


def is_predicted_by(identity: Identity, predictor: Predictor) -> bool:
    """Return whether a run's predictions are those of this model."""
    with jax.set_mesh(devices.one_device()), AUTO("autodiff"):
        traced = _trace_predictor(predictor, identity.inputs)
    return traced is not None and traced.digest == identity.prediction


def _trace_predictor(
    predictor: Predictor, inputs: dict[str, Any]
) -> traced_digest.Traced | None:
    """What predict.py computes of a batch of these inputs; None: it takes none such."""
    try:
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype)
            for name, (dtype, shape) in inputs.items()
        }
        return traced_digest.trace(
            predictor.logits,
            params=predictor.params,
            batch=batch,
            carry=predictor.carry(batch["inputs"].shape[0]),
        )
    except Exception:  # a model refuses inputs of another kind in many ways
        return None


def _predicted(
    predictor: Predictor | None,
    params: PyTree,
    batch: Any,
    evaluated: traced_digest.Traced,
) -> tuple[str | None, dict[str, Any]]:
    """`Identity.prediction` and `Identity.inputs`."""
    if predictor is None or not isinstance(batch, dict) or "inputs" not in batch:
        return "", {}
    inputs = {
        name: [batch[name].dtype.name, list(batch[name].shape)]
        for name in ("inputs", "lengths")
        if name in batch
    }
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, predictor.params):
        return None, inputs
    traced = _trace_predictor(predictor, inputs)
    if traced is None or not evaluated.values.issuperset(traced.results):
        return None, inputs
    return traced.digest, inputs


def _reported(task: Task, sums: Iterable[str]) -> str:
    """The names of what is reported, and its values for some means."""
    # All different, and none 1, of which the root, the square and the inverse are 1.
    values = {name: 0.3 + 0.07 * i for i, name in enumerate(sorted(sums))}
    means = means_of(task, values | {"count": 1.0})
    # In few digits: another machine's functions may round otherwise.
    return json.dumps({name: f"{value:.5g}" for name, value in means.items()})


def _data(task: Task, config: Config) -> str:
    order = task.order
    if order is not None and config.data.order == "walk":
        # Drawn for the whole run: a longer run's begins so.
        order = order[: config.batch_size]
    parts = {"train": task.examples, "splits": task.splits, "order": order}
    described = []
    for path, leaf in jax.tree.leaves_with_path(parts):
        array = np.ascontiguousarray(jax.device_get(leaf))
        # No accident deceives a checksum, at five times the speed of SHA-256.
        name, check = jax.tree_util.keystr(path), zlib.crc32(array.view(np.uint8).data)
        described.append(f"{name} {array.dtype.str}{array.shape} {check:08x}")
    return _hash(*described)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what a trace depends on; of this package, its source."""
    folder = Path(__file__).parent
    source = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda p: p.as_posix()):
        content = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        source.update(f"{name} {len(content)}\n".encode() + content)
    return {
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "source": source.hexdigest()[:16],
    }


def to_text(identity: Identity) -> str:
    """Return the content of a run's `IDENTITY_FILE`."""
    return json.dumps(identity._asdict(), indent=2) + "\n"


def read(workdir: str | Path) -> Identity | None:
    """Return the identity that a run has stored; None: it has none.

    Raises:
      UserError: it is damaged.
    """
    path = Path(workdir) / IDENTITY_FILE
    try:
        fields = json.loads(path.read_text())
        stored = Identity(**fields)
        texts = [stored.data, stored.init, stored.loss, stored.evaluation]
        texts += [stored.prediction or "", *stored.versions.values()]
        shapes = [number for _, shape in stored.inputs.values() for number in shape]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        if not all(type(number) is int and number >= 0 for number in shapes):
            raise TypeError
        for dtype, _ in stored.inputs.values():
            jnp.dtype(dtype)
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"{path} is damaged: restore it; without it the run is not compared"
        ) from None
    return stored


def difference(stored: Identity, identity: Identity) -> str | None:
    """Return what a folder holds, if not the run of this identity; None: that run.

    Compared is only what the same versions found.
    """
    if stored.versions != identity.versions:
        return None
    for name, meaning in _NAMES.items():
        if getattr(stored, name) != getattr(identity, name):
            return meaning
    return None


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
