#!/usr/bin/env bash
# Packages: optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python 3.11 on a
#   CPU.
# One would guess: a finite gradient with one large entry is scaled to norm 1 and keeps its
#   direction: [300, 1, 3] becomes about [1, 0.003, 0.01]
# What happens: the squares overflow, the norm is inf, and the whole update is [0, 0, 0], the
#   large entry too. In float16 an entry of 300 is enough, in float32 one of 1e20; no warning,
#   nothing is NaN
# Why it matters: clipping is there for exploding gradients of recurrent networks; just on the
#   step that explodes training stands still, silently, and a test for NaN sees nothing
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import jax.numpy as jnp
import optax

clip = optax.clip_by_global_norm(1.0)
for gradient in (
    jnp.array([200, 1, 3], jnp.float16),
    jnp.array([300, 1, 3], jnp.float16),
    jnp.array([1e20, 1, 3], jnp.float32),
):
    update, _ = clip.update(gradient, clip.init(gradient))
    print(gradient.dtype, gradient.tolist(), "->", update.tolist())
    if float(gradient[0]) == 200:
        assert abs(float(update[0]) - 1) < 0.01, update
    else:
        assert update.tolist() == [0, 0, 0], update
PY
cd "$work"
export JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/finding.py"
