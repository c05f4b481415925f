"""A trained run as a folder that answers without this package.

The folder holds the weights, a program for each thing that the model does, the
vocabulary, and manifest.json, which says how to call them; docs/serving.md has loaders.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from lstm_jax import checkpoints, prediction
from lstm_jax.data import reviews
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.export import PLATFORMS, export_program, serialize
from lstm_jax.nested import named_leaves, put_leaves
from lstm_jax.prediction import Run
from lstm_jax.reporting import write_file
from lstm_jax.tasks.classification import class_logits, class_probabilities
from lstm_jax.tasks.language_model import stream_logits
from lstm_jax.tasks.task import VOCABULARY_FILE
from lstm_jax.weights import save_weights

WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"


class Program(NamedTuple):
    """An exported function of the weights and of these arguments.

    Attributes:
      exported: the program.
      arguments: names of the arguments after the weights.
      results: names of what it returns; one is returned by itself, more as a tuple.
    """

    exported: export.Exported
    arguments: tuple[str, ...]
    results: tuple[str, ...]


def export_run(workdir: str | Path, out: str | Path, step: int | None = None) -> None:
    """Writes the model of a run as programs, weights and a manifest.

    Args:
      workdir: folder of the run.
      out: the folder to write; made if missing.
      step: which checkpoint; None: that which predict.py answers with.

    Raises:
      UserError: `workdir` holds no run that answers, `out` is not empty or cannot be
        written, or the package of the extra `export` is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("flatbuffers is not installed: pip install -e '.[export]'")
    workdir, out = local_path(workdir), local_path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already: name another folder in --out")
    run = prediction.load(workdir, step)
    found = programs(run)
    files = {f"{name}.jax": serialize(p.exported) for name, p in found.items()}
    if run.vocabulary is not None:
        files[VOCABULARY_FILE] = (workdir / VOCABULARY_FILE).read_bytes()
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_weights(run.params, out / WEIGHTS_FILE)
        for name, content in files.items():
            write_file(out / name, content)
        # Last: with it, the folder is whole.
        write_file(out / MANIFEST_FILE, json.dumps(_manifest(run, found), indent=2))
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({error.strerror}): name another folder in --out"
        ) from None


def programs(run: Run) -> dict[str, Program]:
    """What the model of a run does, by name."""
    return _PROGRAMS[run.config.task](run)


def _classify_text(run: Run) -> dict[str, Program]:
    # Padded at the front, steps of padding count, so that all rows have one length.
    any_length = run.config.data.padding == "right"
    time = "time" if any_length else run.config.data.length
    ids = _array(f"batch, {time}", jnp.int32)
    if not any_length:
        return {"predict": _classifier(run, ids=ids)}
    lengths = jax.ShapeDtypeStruct(ids.shape[:1], jnp.int32)
    return {"predict": _classifier(run, ids=ids, lengths=lengths)}


def _classify_images(run: Run) -> dict[str, Program]:
    return {"predict": _classifier(run, images=_array("batch, 28, 28", jnp.float32))}


def _classifier(run: Run, **arguments: jax.ShapeDtypeStruct) -> Program:
    """Probabilities of inputs, which may have lengths."""

    def predict(weights: Any, *given: Any) -> Any:
        examples = dict(zip(("inputs", "lengths"), given, strict=False))
        params = put_leaves(run.params, weights)
        return class_probabilities(class_logits(run.model, params, examples))

    return _program(run, predict, arguments, "probabilities")


def _next_word(run: Run) -> dict[str, Program]:
    def predict(weights: Any, ids: Any) -> Any:
        params = put_leaves(run.params, weights)
        return class_logits(run.model, params, {"inputs": ids})

    ids = _array(f"batch, {run.config.data.window}", jnp.int32)
    return {"predict": _program(run, predict, {"ids": ids}, "logits")}


def _language_model(run: Run) -> dict[str, Program]:
    """Of whole texts, and of one symbol; a text's first, START, resets the carry."""
    ids = _array("batch, time", jnp.int32)
    like = jax.eval_shape(
        lambda params, ids: stream_logits(run.model, params, ids, None)[0],
        run.params,
        ids,
    )

    def read(weights: Any, ids: Any, carry: Any) -> tuple[Any, Any]:
        params = put_leaves(run.params, weights)
        carry = put_leaves(like, carry)
        carry, logits = stream_logits(run.model, params, ids, carry)
        return logits, named_leaves(carry)

    def step(weights: Any, ids: Any, carry: Any) -> tuple[Any, Any]:
        logits, carry = read(weights, jnp.expand_dims(ids, 1), carry)
        return logits[:, 0], carry

    carry = named_leaves(like)
    one = jax.ShapeDtypeStruct(ids.shape[:1], ids.dtype)
    results = "logits", "carry"
    return {
        "read": _program(run, read, {"ids": ids, "carry": carry}, *results),
        "step": _program(run, step, {"ids": one, "carry": carry}, *results),
    }


# As of `prediction.load`: the tasks that answer.
_PROGRAMS: dict[str, Callable[[Run], dict[str, Program]]] = {
    "next_word": _next_word,
    "language_model": _language_model,
    "classify_text": _classify_text,
    "classify_images": _classify_images,
}


def _program(
    run: Run, function: Callable[..., Any], arguments: dict[str, Any], *results: str
) -> Program:
    weights = jax.eval_shape(lambda: named_leaves(run.params))
    exported = export_program(function, weights, *arguments.values())
    return Program(exported, tuple(arguments), results)


def _array(shape: str, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)


def _manifest(run: Run, found: dict[str, Program]) -> dict[str, Any]:
    """What one has to know to call the programs; sizes that are free have a name."""
    data, text, image = run.config.data, None, None
    if run.vocabulary is not None:
        text = {"vocabulary": VOCABULARY_FILE, "size": run.vocabulary.get_vocab_size()}
        if run.config.task == "next_word":
            text |= {"window": data.window}
        else:
            text |= {
                "pad": reviews.PAD,
                "start": reviews.START,
                "unknown": reviews.UNKNOWN,
            }
        if run.config.task == "classify_text":
            text |= {"length": data.length, "padding": data.padding}
    if run.config.task == "classify_images":
        image = {"range": [0, 1], "polarity": "light on dark"}
    return {
        "task": run.config.task,
        "step": run.step,
        "weights": WEIGHTS_FILE,
        "programs": {name: _described(name, p) for name, p in found.items()},
        "labels": list(run.labels),
        "text": text,
        "image": image,
        "platforms": list(PLATFORMS),
        "versions": {"lstm_jax": checkpoints.version(), "jax": jax.__version__},
    }


def _described(name: str, program: Program) -> dict[str, Any]:
    def shapes(tree: Any) -> Any:
        return jax.tree.map(
            lambda a: {
                "dtype": a.dtype.name,
                "shape": [n if isinstance(n, int) else str(n) for n in a.shape],
            },
            tree,
        )

    exported = program.exported
    (_, *given), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    returned = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    if len(program.results) == 1:
        returned = (returned,)
    call = f"{name}.call(weights, {', '.join(program.arguments)})"
    return {
        "file": f"{name}.jax",
        "call": f"{', '.join(program.results)} = {call}",
        "arguments": dict(zip(program.arguments, shapes(given), strict=True)),
        "results": dict(zip(program.results, shapes(returned), strict=True)),
    }
