#!/usr/bin/env bash
# Packages: optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python 3.11 on a
#   CPU.
# One would guess: the global norm of 1000 bfloat16 arrays of norm 1 is sqrt(1000) = 31.6, to
#   bfloat16's two or three digits
# What happens: it is 16: the squares of the arrays are added one after another in bfloat16,
#   where 256 + 1 is 256, so that each array after the 256th counts for nothing. As one array of
#   1000 entries they give 31.6
# Why it matters: clip_by_global_norm(1) of a model with many small arrays leaves a gradient
#   twice as long as asked; the logged norm is wrong likewise, and depends on how the parameters
#   are cut into arrays
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import jax.numpy as jnp
import optax

many = [jnp.ones(1, jnp.bfloat16)] * 1000
one = jnp.ones(1000, jnp.bfloat16)
clip = optax.clip_by_global_norm(1.0)
clipped, _ = clip.update(many, clip.init(many))
left = sum(float(entry[0]) ** 2 for entry in clipped) ** 0.5
norms = float(optax.tree.norm(many)), float(optax.tree.norm(one))
print("norm as 1000 arrays, as one:", *norms)
print("norm after clipping to 1:", left)
assert norms[0] == 16 and abs(norms[1] - 31.6) < 0.2, norms
assert 1.9 < left < 2.1, left
PY
cd "$work"
export JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/finding.py"
