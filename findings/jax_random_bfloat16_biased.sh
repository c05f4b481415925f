#!/usr/bin/env bash
# Packages: jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python 3.11 on a CPU.
# One would guess: jax.random.categorical with 1024 equal bfloat16 logits draws each index about
#   equally often; bernoulli with p = 0.001 in bfloat16 is true about once in 1000
# What happens: the noise is drawn in the logits' type, which has a hundred-odd values, and ties
#   go to the lowest index: the first quarter of the indices gets 87 % of the draws, the last
#   0.2 %. bernoulli is true 8 times as often as asked. The documentation speaks of a bias in
#   float32 below 1e-7 only
# Why it matters: a language model or policy that ends in bfloat16 samples its low-numbered
#   tokens or actions far too often; with float32 logits of the same values all is well
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

key = jax.random.key(0)
share = {}
for dtype in (jnp.float32, jnp.bfloat16):
    drawn = jax.random.categorical(key, jnp.zeros(1024, dtype), shape=(50_000,))
    share[dtype] = np.bincount(np.asarray(drawn) // 256, minlength=4) / len(drawn)
    true = float(jax.random.bernoulli(key, jnp.asarray(0.001, dtype), (500_000,)).mean())
    print(np.dtype(dtype).name, "draws by quarter:", share[dtype], "bernoulli(0.001):", true)
    if dtype == jnp.float32:
        assert np.allclose(share[dtype], 0.25, atol=0.02) and true < 0.0013
    else:
        assert share[dtype][0] > 0.8 and share[dtype][3] < 0.01 and true > 0.006
PY
cd "$work"
export JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/finding.py"
