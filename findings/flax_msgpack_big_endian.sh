#!/usr/bin/env bash
# Packages: flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python 3.11 on a
#   CPU.
# One would guess: flax.serialization brings a NumPy array of big-endian numbers back with its
#   values, as numpy.save and orbax do, or refuses it
# What happens: the bytes are stored as they lie in memory and the type by a name without byte
#   order, so that [1, 2, 3] of type >i4 comes back as [16777216, 33554432, 50331648], and >f4
#   as numbers near 0. to_bytes and from_bytes do the same
# Why it matters: big-endian arrays come from ordinary files (IDX, FITS, netCDF, some HDF5);
#   statistics such as a mean kept beside the parameters are read back wrong by the library's
#   own pair of functions
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import numpy as np
from flax import serialization

seen = {}
for dtype in ("<i4", ">i4", ">f4"):
    array = np.arange(1, 4).astype(dtype)
    low = serialization.msgpack_restore(serialization.msgpack_serialize({"a": array}))["a"]
    high = serialization.from_bytes({"a": array}, serialization.to_bytes({"a": array}))["a"]
    assert low.tolist() == high.tolist()
    seen[dtype] = low.tolist()
    print(dtype, array.tolist(), "->", low.tolist(), low.dtype)
assert seen["<i4"] == [1, 2, 3]
assert seen[">i4"] == [16777216, 33554432, 50331648], seen
assert max(seen[">f4"]) < 1e-30, seen
PY
cd "$work"
export JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/finding.py"
