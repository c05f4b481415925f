#!/usr/bin/env bash
# Packages: orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python
#   3.11 on a CPU.
# One would guess: a checkpoint saved into runs/lr=[1,2] or runs/v[2] is restored from there, as
#   from any other folder
# What happens: it is reported as saved and listed by the manager, and the files are there;
#   restoring it fails, Metadata at a/.zarray does not exist. Braces, ? and * in the name do no
#   harm. Renaming the folder afterwards does not help: the step that joins the written parts
#   has found none of them and has said nothing
# Why it matters: a folder named after a list of settings takes days of checkpoints that no
#   restart can read
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
tree = {"a": np.arange(3.0)}
outcome = {}


def restore(manager):
    """Returns what became of the checkpoint of step 1."""
    try:
        restored = manager.restore(1, args=ocp.args.StandardRestore(tree))
    except ValueError as error:
        return "lost" if "does not exist" in str(error) else str(error)
    return "restored" if restored["a"].tolist() == [0, 1, 2] else "other values"


for name in ("v2", "v{2}", "v[2]"):
    folder = pathlib.Path(name).absolute()
    with ocp.CheckpointManager(folder) as manager:
        saved = manager.save(1, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
        assert saved and manager.all_steps() == [1]
        outcome[name] = restore(manager)
pathlib.Path("v[2]").rename("renamed")
with ocp.CheckpointManager(pathlib.Path("renamed").absolute()) as manager:
    outcome["v[2], renamed"] = restore(manager)
print(outcome)
assert list(outcome.values()) == ["restored", "restored", "lost", "lost"], outcome
PY
cd "$work"
export JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/finding.py"
