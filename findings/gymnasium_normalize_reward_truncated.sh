#!/usr/bin/env bash
# Packages: gymnasium==1.4.0 numpy==2.4.6; seen with Python 3.11.
# One would guess: NormalizeReward scales by the spread of the discounted return of an episode:
#   the return begins at 0 with each episode, whether the one before was terminated or truncated
# What happens: it begins anew where terminated is True, and goes on through reset() where
#   truncated is: with a reward of 1 and episodes of 10 steps it reaches 9.6 if they are
#   terminated, and 100 if they are truncated. The wrapper of the same name for vector
#   environments begins anew after both
# Why it matters: environments that end by time limit alone, as most of control do, get rewards
#   that are scaled by a return that no episode has, and scaled the more the longer one trains
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6
cat > "$work/finding.py" <<'PY'
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeReward
from gymnasium.wrappers.vector import NormalizeReward as VectorNormalizeReward


class TenSteps(gymnasium.Env):
    """A reward of 1 in each of ten steps; the last one ends the episode."""

    observation_space = gymnasium.spaces.Discrete(1)
    action_space = gymnasium.spaces.Discrete(1)

    def __init__(self, ends: str) -> None:
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return 0, {}

    def step(self, action):
        self.steps += 1
        last = self.steps == 10
        ended = last and self.ends == "terminated", last and self.ends == "truncated"
        return 0, 1.0, *ended, {}


expected = sum(0.99**k for k in range(10))
print("return of an episode:", round(expected, 2))
largest = {}
for ends in ("terminated", "truncated"):
    env = NormalizeReward(TenSteps(ends), gamma=0.99)
    many = VectorNormalizeReward(
        SyncVectorEnv([lambda: TenSteps(ends)], autoreset_mode=AutoresetMode.SAME_STEP),
        gamma=0.99,
    )
    seen = []
    many.reset()
    for _ in range(100):
        env.reset()
        for _ in range(10):
            env.step(0)
            many.step(np.zeros(1, int))
            both = env.discounted_reward, many.accumulated_reward
            seen.append([np.max(value) for value in both])
    largest[ends] = np.max(seen, axis=0)
    print(f"largest return, {ends}: {largest[ends].round(2).tolist()} (one, vector)")
assert np.allclose(largest["terminated"][0], expected)
assert largest["truncated"][1] <= expected, "the vector wrapper goes on now"
assert largest["truncated"][0] > 95, "a truncated episode ends the return now"
PY
cd "$work"
"$work/venv/bin/python" "$work/finding.py"
