#!/usr/bin/env bash
# Packages: jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python 3.11 on a CPU.
# One would guess: the usual data-parallel step (jax.grad of the device's own loss by the
#   replicated parameter, then lax.pmean) gives the mean gradient, under shard_map as under pmap
#   and vmap
# What happens: under shard_map with its default check_vma=True it gives the gradient times the
#   number of devices: jax.grad has added up the devices already, and pmean of the equal values
#   is then the sum. With check_vma=False, and in pmap and vmap, the same function gives the
#   mean. No error, no warning
# Why it matters: a step moved from pmap to shard_map trains with a learning rate that is
#   multiplied by the number of devices
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P


def step(weight, inputs):
    gradient = jax.grad(lambda w: jnp.mean(w * inputs))(weight)
    return jax.lax.pmean(gradient, "d")


mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
weight, inputs = jnp.float32(1), jnp.array([1.0, 3.0])
result = {
    f"shard_map, check_vma={check}": float(
        jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=check
        )(weight, inputs)
    )
    for check in (True, False)
}
for name, mapped in (("pmap", jax.pmap), ("vmap", jax.vmap)):
    f = mapped(step, axis_name="d", in_axes=(None, 0))
    result[name] = float(f(weight, inputs[:, None])[0])
print("the mean of 1 and 3 is 2:", result)
assert list(result.values()) == [4, 2, 2, 2], result
PY
cd "$work"
export JAX_PLATFORMS=cpu
XLA_FLAGS=--xla_force_host_platform_device_count=2 "$work/venv/bin/python" "$work/finding.py"
