"""What a TPU's compiler makes of the programs, without a TPU.

    pip install libtpu
    TPU_SKIP_MDS_QUERY=1 python -m benchmarks.tpu_programs

Compiles the training step of `imdb_lstm`'s model for the 16 chips of a TPU v5e-16, with
parameters whole and divided, and a layer forward and backward by `lstm_jax/pallas.py`
for one of them. Prints the collectives of the step and the bytes that a chip holds.
Nothing runs: there are no times.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import lstm_jax as lj
from benchmarks.candidates.with_lstm_jax import make_task
from benchmarks.work import WORKS
from lstm_jax import sharding, steps

TOPOLOGY = "v5e:4x4"
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter)[\w-]*\(")


def compile_for(mesh: Mesh, function: Any, *arguments: Any) -> Any:
    """The compiled program for the devices of a mesh, none of which need be here."""
    with jax.set_mesh(mesh):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=("tpu",)).compile()


def placed(mesh: Mesh, tree: Any, specs: Any = None) -> Any:
    """Shapes and types of arrays, on the devices of a mesh."""
    specs = specs or jax.tree.map(lambda _: sharding.Rows().none, tree)
    return jax.tree.map(
        lambda a, spec: jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=jax.sharding.NamedSharding(mesh, spec)
        ),
        tree,
        specs,
    )


def step(devices: list[Any], fsdp: bool) -> Any:
    """The compiled training step."""
    axes = (sharding.ROWS, *((sharding.PARAMS,) if fsdp else ()))
    shape = (len(devices), *((1,) if fsdp else ()))
    auto = (AxisType.Auto,) * len(axes)
    mesh = Mesh(np.array(devices).reshape(shape), axes, axis_types=auto)
    work = WORKS["S2 imdb_lstm"]._replace(batch=256, time=100, steps=1)
    task, _ = make_task(work)
    stepping = steps.Stepping(task, optax.adam(1e-3), work.batch)
    keys = steps.make_keys(0)
    state = jax.eval_shape(functools.partial(steps.init_state, stepping), keys)
    with jax.set_mesh(mesh):
        specs = steps.state_specs(state)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return compile_for(
        mesh,
        functools.partial(steps.train_steps, stepping, keys),
        placed(mesh, state, specs),
        placed(mesh, task.examples[0]),
        *placed(mesh, (number, number)),
    )


def layer(device: Any, cell: lj.Cell) -> Any:
    """A layer's compiled value and gradients by the kernel."""
    mesh = Mesh(np.array([device]), ("one",), axis_types=(AxisType.Auto,))

    def loss(params: Any, xs: Any, lengths: Any) -> Any:
        options: Any = {"lengths": lengths, "implementation": "pallas"}
        return jnp.sum(jnp.square(lj.unroll(cell, params, xs, **options)[1]))

    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 128))
    xs = jax.ShapeDtypeStruct((64, 100, 128), jnp.float32)
    lengths = jax.ShapeDtypeStruct((64,), jnp.int32)
    gradients = jax.value_and_grad(loss, argnums=(0, 1))
    return compile_for(mesh, gradients, *placed(mesh, (params, xs, lengths)))


def main() -> None:
    """Prints what was compiled."""
    jax.config.update("jax_platforms", "cpu")
    topology: Any = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)
    for fsdp in (False, True):
        program = step(topology.devices, fsdp)
        lines = program.as_text().splitlines()
        found = [match[1] for match in map(_COLLECTIVE.search, lines) if match]
        counts = ", ".join(f"{found.count(kind)} {kind}" for kind in sorted({*found}))
        held = program.memory_analysis().argument_size_in_bytes
        name = "fsdp" if fsdp else "whole"
        print(f"{TOPOLOGY}, parameters {name}: {counts}; {held:,} bytes a chip")
    for name, cell in (("lstm", lj.lstm(128)), ("gru", lj.gru(128))):
        layer(topology.devices[0], cell)
        print(f"{name} by the kernel, forward and backward: compiled")


if __name__ == "__main__":
    main()
