#!/usr/bin/env bash
# Packages: keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; seen with Python 3.11 on a
#   CPU.
# One would guess: unroll=True is a matter of speed: the same numbers as with unroll=False, and
#   zeros at masked steps where zero_output_for_mask=True, which Bidirectional sets for its
#   layers
# What happens: an unrolled layer leaves zero_output_for_mask out: it repeats the last valid
#   output at masked steps. And with an initial state, a sequence that begins with masked steps
#   gives that state there in the loop, but zeros unrolled
# Why it matters: a sum, mean or attention over the outputs of a Bidirectional changes with a
#   switch that is there for speed: the padding of short rows counts once it is unrolled
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import keras
import numpy as np

keras.utils.set_random_seed(0)
inputs = np.random.default_rng(0).normal(size=(1, 4, 3)).astype("float32")


def both(build, mask, **arguments):
    """Returns the outputs [time, features] of the loop and of the unrolled layer with its weights."""
    layers = [build(unroll) for unroll in (False, True)]
    for layer in layers:
        layer.build(inputs.shape)
    layers[1].set_weights(layers[0].get_weights())
    return [np.asarray(layer(inputs, mask=np.array([mask]), **arguments))[0] for layer in layers]


def bidirectional(unroll):
    lstm = keras.layers.LSTM(2, return_sequences=True, unroll=unroll)
    return keras.layers.Bidirectional(lstm, merge_mode="sum")


loop, unrolled = both(bidirectional, [True, True, False, False])
print("Bidirectional, two steps of padding:", loop.round(3).tolist(), unrolled.round(3).tolist())
assert np.allclose(loop[:2], unrolled[:2], atol=1e-5)
assert not loop[2:].any() and (np.abs(unrolled[2:]).max(1) > 1e-3).all()

state = [np.full((1, 2), value, "float32") for value in (0.5, 0.7)]
loop, unrolled = both(
    lambda unroll: keras.layers.LSTM(2, return_sequences=True, unroll=unroll),
    [False, True, True, True],
    initial_state=state,
)
print("LSTM, first step masked:", loop.round(3).tolist(), unrolled.round(3).tolist())
assert np.allclose(loop[1:], unrolled[1:], atol=1e-5)
assert np.allclose(loop[0], 0.5) and not unrolled[0].any()
PY
cd "$work"
export JAX_PLATFORMS=cpu
KERAS_BACKEND=jax "$work/venv/bin/python" "$work/finding.py"
