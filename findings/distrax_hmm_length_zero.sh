#!/usr/bin/env bash
# Packages: distrax==0.1.9 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python 3.11 on a
#   CPU.
# One would guess: HMM.forward_backward(padded, length=3) gives at the three valid steps what
#   forward_backward gives for the three steps without padding
# What happens: the log-likelihood and the forward part are right; the backward part and the
#   smoothed marginals are 0 at every step, for each length that is shorter than the padded one:
#   the backward pass starts in the padding, is set to 0 there and stays 0
# Why it matters: length is there for batches of varying length: only the longest rows of a
#   batch get posteriors, the others zeros that sum to 0, without NaN or an error
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check distrax==0.1.9 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import warnings

import distrax
import jax.numpy as jnp
import numpy as np

warnings.simplefilter("ignore")
hmm = distrax.HMM(
    init_dist=distrax.Categorical(probs=jnp.array([0.6, 0.4])),
    trans_dist=distrax.Categorical(probs=jnp.array([[0.7, 0.3], [0.2, 0.8]])),
    obs_dist=distrax.Normal(jnp.array([0.0, 2.0]), jnp.ones(2)),
)
observed = jnp.array([0.1, 2.0, 1.5])
alone = hmm.forward_backward(observed)
padded = hmm.forward_backward(jnp.pad(observed, (0, 2)), length=3)
print("marginals without padding:", np.asarray(alone[2]).round(3).tolist())
print("marginals with padding:", np.asarray(padded[2]).round(3).tolist())
assert np.allclose(alone[3], padded[3], atol=1e-4) and np.allclose(alone[0], padded[0][:3], atol=1e-4)
assert np.allclose(alone[2].sum(axis=1), 1, atol=1e-4)
assert not padded[2].any(), "the marginals are no longer all 0"
PY
cd "$work"
export JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/finding.py"
