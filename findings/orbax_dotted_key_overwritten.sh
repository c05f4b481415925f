#!/usr/bin/env bash
# Packages: orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python
#   3.11 on a CPU.
# One would guess: a tree with both the key 'a.b' and 'b' inside 'a' comes back as it was saved,
#   or is refused
# What happens: the two arrays are stored under one name, a.b. With equal shapes and types
#   saving and restoring succeed, and both come back with the values of one of them; only
#   another shape gives an error
# Why it matters: parameters that were named elsewhere (lstm.weight) beside nested ones, or a
#   flat table of statistics beside the tree, are lost without a word, found out at the restore
#   if at all
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import logging
import pathlib

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.WARNING)
tree = {"a": {"b": np.full(2, 1.0)}, "a.b": np.full(2, 2.0)}
path = pathlib.Path("saved").absolute()
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(path, tree)
print("saved:", tree)
print("restored:", restored)
assert restored["a"]["b"].tolist() == restored["a.b"].tolist(), "no longer mixed up"
PY
cd "$work"
export JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/finding.py"
