"""Gradient flow through the recurrent layers of a model, as a task runs it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lstm_jax import devices, processes, sharding
from lstm_jax.cells import Cell, Params
from lstm_jax.errors import UserError
from lstm_jax.flow import Flow, measure
from lstm_jax.layers import Recurrent
from lstm_jax.tasks.task import Examples, Task, longest, size_of

# Of the longest training examples, at most: enough for a mean, soon measured.
_ROWS = 32
# Lags of which a row of metrics tells.
_LAGS = (1, 10, 100)

# `probe(params)`: the flow through each recurrent layer, by its name.
Probe = Callable[[Params], dict[str, Flow]]


class _Call(NamedTuple):
    """What a layer is called with that is no array."""

    cell: Cell
    reverse: bool


def make_probe(task: Task, batch_size: int) -> Probe:
    """What measures a model: `lstm_jax.flow.measure` of each of its recurrent layers.

    Always on the same training examples (the first ones, of the longest length), with
    the task's own loss on them and without dropout. The model runs as it does in
    training; a zero is added to what each layer returns, and the derivative with
    respect to it is the loss's gradient at the layer's outputs.

    Args:
      task: whose model it is.
      batch_size: of the training.

    Returns:
      The probe, compiled once. It runs on one device of the leading process, for a
      loop of no product that is worth dividing; of several processes every one has to
      call it, and the others get {}.

    Raises:
      UserError: the model has no recurrent layer.
    """
    examples, weight = _batch(task, batch_size)
    calls: dict[str, _Call] = {}

    def run(
        params: Params, examples: Examples, added: Mapping[str, PyTree] | None
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Any]]]:
        """The loss, what each layer is given, and what it returns."""
        given: dict[str, Any] = {}
        returned: dict[str, Any] = {}

        def intercept(call: Any, args: Any, options: Any, context: Any) -> Any:
            layer = context.module
            if not isinstance(layer, Recurrent) or context.method_name != "__call__":
                return call(*args, **options)
            name = _unused("/".join(layer.path), given)
            calls[name] = _Call(layer.cell, layer.reverse)
            out = call(*args, **options)
            own = {k: v for k, v in options.items() if k != "deterministic"}
            given[name] = layer.variables["params"]["cell"], args, own
            returned[name] = out
            return out if added is None else jax.tree.map(jnp.add, out, added[name])

        carry = task.carry(len(weight))  # it may run the model too, to see its shapes
        with nn.intercept_methods(intercept):
            sums, _ = task.loss(params, examples, weight, None, carry)
        return sums["loss"] / sums["count"], (given, returned)

    def flows(params: Params, examples: Examples) -> dict[str, Flow]:
        shapes = jax.eval_shape(run, params, examples, None)[1][1]
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        def loss(added: Mapping[str, PyTree]) -> Any:
            return run(params, examples, added)

        cotangents, (given, _) = jax.grad(loss, has_aux=True)(zeros)
        found = {}
        for name, (own, args, options) in given.items():
            cell, reverse = calls[name]
            xs, *rest = args
            options = {"carry": rest[0] if rest else None, **options}
            found[name] = measure(
                cell, own, xs, cotangents[name], reverse=reverse, **options
            )
        return found

    params = jax.eval_shape(task.init, jax.random.key(0))
    jax.eval_shape(run, params, examples, None)
    if not calls:
        raise UserError(
            "report.flow_every measures recurrent layers, and the model has none: set "
            "it to 0"
        )
    compiled, whole = jax.jit(flows), jax.jit(sharding.replicate)

    def probe(params: Params) -> dict[str, Flow]:
        params = jax.device_get(whole(params))
        if not processes.leads():
            return {}
        with jax.set_mesh(devices.one_device()):
            found = jax.device_get(compiled(params, examples))
        return {name: found[name] for name in calls}  # in the order of the model

    return probe


def _batch(task: Task, batch_size: int) -> tuple[Examples, Float[Array, " B"]]:
    """As many examples as a batch has, or `_ROWS`, and their weights."""
    examples = longest(task.examples)
    rows = min(batch_size, size_of(examples), _ROWS)
    return jax.tree.map(lambda a: a[:rows], examples), jnp.ones(rows)


def _unused(name: str, names: Mapping[str, Any]) -> str:
    """The name of a layer; of one that is called again, with a number."""
    times = sum(known.split(" ")[0] == name for known in names)
    return f"{name} {times + 1}" if times else name


def metrics(flows: Mapping[str, Flow]) -> dict[str, float]:
    """Numbers for a row of `metrics.jsonl`: of each layer some gains, and a half-life.

    Keys are "<layer>/gain_<lag>" of h and "<layer>/<field>_gain_<lag>" of a memory, and
    "<layer>/time_constant", the median over units; of several memories
    "<layer>/<field>_time_constant".
    """
    row: dict[str, float] = {}
    for name, flow in flows.items():
        for field, gains in flow.lag_gains.items():
            key = f"{name}/gain" if field == "h" else f"{name}/{field}_gain"
            row |= {f"{key}_{k}": float(gains[k]) for k in _LAGS if k < len(gains)}
        several = len(flow.time_constants) > 1
        for field, taus in flow.time_constants.items():
            which = f"{field}_time_constant" if several else "time_constant"
            row[f"{name}/{which}"] = float(np.median(taus))
    return row
