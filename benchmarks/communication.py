"""Bytes that a training step communicates: `python -m benchmarks.communication`.

Processes on this machine train the model of `imdb_lstm` on the processor and talk
through the loopback device, whose counter tells what they sent (Linux). Beside it
stands what docs/scaling.md expects.
"""

import argparse
import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from benchmarks import groups, report
from benchmarks.candidates.with_lstm_jax import make_task
from benchmarks.report import Row
from benchmarks.work import WORKS
from lstm_jax import devices, processes, sharding, steps

STEPS = 50
_COUNTERS = Path("/proc/net/dev")


def loopback_bytes() -> int:
    """Bytes sent through the loopback device so far, headers included."""
    for line in _COUNTERS.read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise RuntimeError(f"no loopback device in {_COUNTERS}")


def measure(time: int, fsdp: bool) -> dict[str, float]:
    """Bytes a step and process; run by all of them at once."""
    work = WORKS["S2 imdb_lstm"]._replace(time=time, batch=16, steps=1)
    task, _ = make_task(work)
    stepping = steps.Stepping(task, optax.adam(1e-3), work.batch)
    keys = steps.make_keys(0)
    mesh = devices.make_mesh(0, work.batch, fsdp=fsdp)
    with jax.set_mesh(mesh):
        init = functools.partial(steps.init_state, stepping)
        state = jax.eval_shape(init, keys)
        specs = steps.state_specs(state)
        divided = [sharding.ROWS in spec for spec in jax.tree.leaves(specs.params)]
        places = sharding.shardings(specs)
        state = jax.jit(lambda: init(steps.make_keys(0)), out_shardings=places)()
        examples = sharding.put(task.examples[0])
        run = jax.jit(functools.partial(steps.train_steps, stepping, keys))
        zero, count = sharding.put((jnp.int32(0), jnp.int32(STEPS)))
        jax.block_until_ready(run(state, examples, zero, count))
        processes.wait()
        before = loopback_bytes()
        jax.block_until_ready(run(state, examples, zero, count))
        processes.wait()
        sent = loopback_bytes() - before
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    number = processes.count()
    return {
        "processes": number,
        "time": time,
        "divided": fsdp,
        "parameters": sum(sizes),
        "held": sum(
            size // number if part else size
            for size, part in zip(sizes, divided, strict=True)
        ),
        "expected": 2 * (number - 1) / number * 4 * sum(sizes),
        "sent": sent / STEPS / number,
    }


def run_group(count: int, time: int, fsdp: bool, logs: Path) -> Row:
    """`measure` in that many processes."""
    arguments = [f"--time={time}", f"--divide={int(fsdp)}"]
    program = ("-m", "benchmarks.communication")
    ended = groups.run(count, arguments, logs, program=program)
    if any(process.code for process in ended):
        raise RuntimeError(ended[0].err)
    return json.loads(ended[0].out.splitlines()[-1])


def main() -> None:
    """Runs each case in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    for name in ("num_processes", "process_id", "time", "divide"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.coordinator is not None:
        processes.start(options.coordinator, options.num_processes, options.process_id)
        print(json.dumps(measure(options.time, bool(options.divide))))
        processes.finish()
        return
    with tempfile.TemporaryDirectory() as logs:
        rows = [
            run_group(count, time, divide, Path(logs))
            for count in (2, 4)
            for time in (20, 200)
            for divide in (False, True)
        ]
    lines = [
        "| processes | steps of a sequence | parameters | held by each | KB sent a "
        "training step | expected |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        held = f"{row['held']:,} of {row['parameters']:,}"
        kind = "divided" if row["divided"] else "whole"
        lines.append(
            f"| {row['processes']} | {row['time']} | {kind} | {held} | "
            f"{row['sent'] / 1e3:,.0f} | {row['expected'] / 1e3:,.0f} |"
        )
    about = report.about()
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    text = f"{about['date']}, {about['machine']}; {versions}.\n\n" + "\n".join(lines)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "communication.md").write_text(text + "\n")
    found = json.dumps({**about, "rows": rows}, indent=1)
    (options.out / "communication.json").write_text(found + "\n")
    print(text)


if __name__ == "__main__":
    main()
