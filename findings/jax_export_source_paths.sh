#!/usr/bin/env bash
# Packages: jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 flatbuffers==25.12.19; seen with Python 3.11
#   on a CPU.
# One would guess: one program, exported by jax.export from two checkouts, gives the same bytes,
#   and they hold the computation only
# What happens: the bytes differ: they hold the absolute paths of the source files that the
#   function was traced from. With jax_traceback_in_locations_limit=0 they are equal, smaller,
#   and hold no path
# Why it matters: an exported model that is handed on tells the folder (often the user's name)
#   it was made in; a cache or a release that compares checksums sees a new model at each
#   checkout
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 flatbuffers==25.12.19
cat > "$work/finding.py" <<'PY'
import sys

import jax
import jax.numpy as jnp

sys.path.insert(0, sys.argv[1])
import program

if sys.argv[2] == "bare":
    jax.config.update("jax_traceback_in_locations_limit", 0)
exported = jax.export.export(jax.jit(program.f))(jax.ShapeDtypeStruct((3,), jnp.float32))
content = exported.serialize()
with open(sys.argv[3], "wb") as file:
    file.write(content)
inside = sys.argv[1].encode() in content
print(sys.argv[2], "export,", len(content), "bytes, holds its folder's path:", inside)
assert inside == (sys.argv[2] == "full")
PY
cd "$work"
export JAX_PLATFORMS=cpu
mkdir first other
printf 'import jax.numpy as jnp\ndef f(x):\n    return jnp.sum(jnp.tanh(x) ** 2)\n' > first/program.py
cp first/program.py other/program.py
for how in full bare; do
    for folder in first other; do
        "$work/venv/bin/python" finding.py "$work/$folder" $how "$how.$folder"
    done
done
cmp -s bare.first bare.other
! cmp -s full.first full.other
