"""A model's layers as a table."""

import math
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, PRNGKeyArray, Shaped


def summarize(module: nn.Module, inputs: Shaped[Array, "B T *D"]) -> str:
    """A table of the module's layers: output shape, parameters, and their total."""

    def run(key: PRNGKeyArray) -> tuple[Any, Any]:
        variables = module.init(key, inputs)
        _, seen = module.apply(
            variables, inputs, capture_intermediates=True, mutable="intermediates"
        )
        called.extend(name for name in seen["intermediates"] if name != "__call__")
        return variables["params"], seen["intermediates"]

    called: list[str] = []  # in this order; what `eval_shape` returns is sorted
    params, seen = jax.eval_shape(run, jax.random.key(0))
    rows, total = [("layer", "output shape", "parameters")], 0
    for name in called:
        outputs = seen[name]
        layers = {k: v for k, v in outputs.items() if k.startswith("layer_")}
        for layer, out in layers.items() if layers else {"": outputs}.items():
            path = f"{name}/{layer}".strip("/")
            tree = params.get(name, {})
            leaves = jax.tree.leaves(tree[layer] if layer else tree)
            count = sum(math.prod(leaf.shape) for leaf in leaves)
            # The last leaf of a recurrent layer's (carry, ys) is ys.
            shape = jax.tree.leaves(out["__call__"])[-1].shape
            rows.append((path, str(list(shape)), f"{count:,}"))
            total += count
    rows.append(("total", "", f"{total:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    rule = "-" * (sum(widths) + 4)
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows
    ]
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]]) + "\n"
