"""One batch on many devices, each of which runs rows of its own.

The mesh is that of the context (`jax.set_mesh`); its axis `ROWS` divides the batch.
XLA partitions by itself what is no loop, and draws for the whole batch as one device
does, so masks of dropout are the same on any number of devices. In a loop over time it
would sum the weight gradient over the devices at every step: loops go through `Rows`,
which runs them on each device's rows alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

ROWS = "lstm_jax_rows"  # no name of a user's own axis


class Rows(NamedTuple):
    """Where the rows of arrays are.

    Attributes:
      none: for arrays without rows: every device has all of it.
      first: for rows along axis 0.
      second: for rows along axis 1, after time.
    """

    none: PartitionSpec = PartitionSpec()
    first: PartitionSpec = PartitionSpec(ROWS)
    second: PartitionSpec = PartitionSpec(None, ROWS)


def rows_last(ndim: int) -> PartitionSpec:
    """For rows along the last of so many axes."""
    return PartitionSpec(*[None] * (ndim - 1), ROWS)


def shards(batch_size: int) -> int:
    """Parts of a batch: the devices of the context, or 1 where they divide it not."""
    mesh = jax.sharding.get_abstract_mesh()
    count = mesh.shape[ROWS] if ROWS in mesh.auto_axes else 1
    return count if batch_size % count == 0 else 1


def divides(batch_size: int) -> bool:
    """Whether the context has more than one device, and as many rows for each."""
    return shards(batch_size) > 1


def on_each_device(
    function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree
) -> Callable[..., Any]:
    """`function` on each device's rows; the specs say where rows are, as in `Rows`."""
    # Unchecked: the check knows no `custom_vjp` whose cotangents are sums.
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def total(array: Array) -> Array:
    """The sum over devices, inside of `on_each_device`."""
    return lax.psum(array, ROWS)


def split_rows(tree: PyTree) -> PyTree:
    """The same arrays, their rows (axis 0) divided over the devices."""

    def split(array: Any) -> Any:
        if array.ndim == 0 or not divides(array.shape[0]):
            return array
        return lax.with_sharding_constraint(array, Rows().first)

    return jax.tree.map(split, tree)


def replicate(tree: PyTree) -> PyTree:
    """The same arrays, all of them on every device."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, Rows().none), tree)


def put(tree: PyTree) -> PyTree:
    """Copies arrays to every device of the context, if there is one."""
    if jax.sharding.get_abstract_mesh().empty:
        return jax.device_put(tree)
    return jax.device_put(tree, Rows().none)


def put_rows(tree: PyTree) -> PyTree:
    """Divides the rows (axis 0) of arrays over the devices of the context."""

    def put_array(array: Any) -> Array:
        if array.ndim == 0 or not divides(array.shape[0]):
            return put(array)
        return jax.device_put(array, Rows().first)

    return jax.tree.map(put_array, tree)
