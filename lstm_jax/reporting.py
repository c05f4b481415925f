"""What a person sees of a run: progress, JSON lines, TensorBoard, curves, files."""

import io
import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from lstm_jax.errors import UserError

if TYPE_CHECKING:
    import matplotlib.axes
    import tensorboardX

# One line of metrics.jsonl. Keys: `step` (updates done), `epoch`, `split`, `seconds`
# (training time summed over restarts); every other key is a metric: a Python number,
# None where it was not finite.
Row = dict[str, Any]

_NOT_METRICS = ("step", "epoch", "split", "seconds")
_REDRAW_SECONDS = 30.0
_SMOOTH_ABOVE = 300  # rows; a shorter train curve is readable as it is
# Okabe and Ito's palette, which the colour-blind can tell apart; the first is train's.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class Report(NamedTuple):
    """The open handles of a run's report; made by `open_report`."""

    workdir: Path
    total_steps: int
    rows: list[Row]  # every row of metrics.jsonl, grown by `add_row`
    file: TextIO
    writer: "tensorboardX.SummaryWriter"
    bar: tqdm | None  # None: stderr is no terminal, progress is plain lines


def write_file(path: str | Path, content: str | bytes) -> None:
    """Writes a whole file such that neither a reader nor a kill meets half of it."""
    path = Path(path)
    # The same folder, hence the same file system: only there is a rename atomic.
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def read_metrics(workdir: str | Path) -> list[Row]:
    """Reads `metrics.jsonl` of a run, finished, running or killed.

    Args:
        workdir: folder of the run.

    Returns:
        The rows in the order they were written, [] without a file. A last line that
        a kill tore is left out.

    Raises:
        UserError: if a line before the last one is not JSON.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number} is not JSON: mend or delete that line"
                ) from None
    return rows


def open_report(
    workdir: str | Path, *, step: int, total_steps: int, texts: dict[str, str]
) -> Report:
    """Opens the report of a run that starts, or resumes, at `step`.

    Rows past `step`, which a killed run wrote after its last checkpoint, are cut off
    from `metrics.jsonl` and hidden in TensorBoard.

    Args:
        workdir: folder of the run; made if missing.
        step: updates done so far, 0 for a new run.
        total_steps: updates done when the run is complete.
        texts: title to text, shown in TensorBoard (the config, the summary).

    Returns:
        The report; `close_report` must close it.

    Raises:
        UserError: if `metrics.jsonl` is damaged before its last line.
    """
    # Here, because the import is slow: with PyTorch installed, it imports that too.
    from tensorboardX import SummaryWriter

    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_metrics(workdir) if row["step"] <= step]
    path = workdir / "metrics.jsonl"
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    # The writer names its file by the second and truncates what is there: without a
    # suffix of its own, a quick restart would erase the events before it.
    suffix = f".{len(list(workdir.glob('events.out.tfevents.*')))}"
    writer = SummaryWriter(
        str(workdir), purge_step=step + 1, flush_secs=10, filename_suffix=suffix
    )
    for title, text in texts.items():
        # TensorBoard renders Markdown: four spaces keep a text's lines as they are.
        writer.add_text(title, "    " + text.replace("\n", "\n    "), step)
    bar = None
    if sys.stderr.isatty():
        bar = tqdm(
            initial=step,
            total=total_steps,
            file=sys.stderr,
            dynamic_ncols=True,
            miniters=1,  # each row moves the bar, whatever the pace before it
            bar_format="step {n}/{total} |{bar}| [{elapsed}<{remaining}{postfix}]",
        )
    return Report(workdir, total_steps, rows, path.open("a"), writer, bar)


def add_row(report: Report, row: Row) -> None:
    """Adds one row of metrics to every output of the report.

    Args:
        report: from `open_report`.
        row: `step`, `epoch`, `split` ("train", or the name of an evaluated split),
            `seconds`, and metrics, all Python numbers.
    """
    is_train = row["split"] == "train"
    previous = next(
        (r for r in reversed(report.rows) if (r["split"] == "train") == is_train),
        {"step": 0, "seconds": 0.0},
    )
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    report.rows.append(finite)
    # One write and one flush: a kill tears the last line at most.
    report.file.write(json.dumps(finite) + "\n")
    report.file.flush()
    for name in _metrics(finite):
        if finite[name] is not None:
            tag = f"{row['split']}/{name}"
            report.writer.add_scalar(tag, finite[name], row["step"])
    _show(report, row, previous)
    # Now and then, so that a killed run has curves too: at the first evaluation after
    # each 30 s of training.
    periods = [r["seconds"] // _REDRAW_SECONDS for r in (previous, row)]
    if not is_train and periods[1] > periods[0]:
        draw_curves(report.rows, report.workdir / "curves.png", report.workdir.name)


def say(report: Report, line: str) -> None:
    """Shows a line on stderr, above the bar where there is one."""
    if report.bar is None:
        print(line, file=sys.stderr, flush=True)
    else:
        report.bar.write(line, file=sys.stderr)


def close_report(report: Report) -> None:
    """Closes every output of the report and draws the curves a last time."""
    if report.bar is not None:
        report.bar.close()
    report.file.close()
    report.writer.close()
    draw_curves(report.rows, report.workdir / "curves.png", report.workdir.name)


def _metrics(row: Row) -> list[str]:
    return [key for key in row if key not in _NOT_METRICS]


def _number(value: float) -> str:
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if is_plain else f"{value:.3e}"


def _show(report: Report, row: Row, previous: Row) -> None:
    """Shows a row on stderr: moves the bar, or prints a line."""
    metrics = [f"{name} {_number(row[name])}" for name in _metrics(row)]
    step = f"step {row['step']}/{report.total_steps}"
    if row["split"] != "train":
        line = "  ".join([row["split"], *metrics])
        if report.bar is None:
            print("  " + line, file=sys.stderr, flush=True)
        else:
            # No train line stands above it to say which step this is.
            report.bar.write(f"{step}  {line}", file=sys.stderr)
        return
    steps = max(row["step"] - previous["step"], 1)
    ms = 1000 * (row["seconds"] - previous["seconds"]) / steps
    epoch = [f"epoch {row['epoch']:g}"] if "epoch" in row else []
    parts = [*epoch, f"{ms:.{1 if ms >= 1 else 3}f} ms/step", *metrics]
    if report.bar is None:
        print("  ".join([step, *parts]), file=sys.stderr, flush=True)
    else:
        report.bar.set_postfix_str("  ".join(parts), refresh=False)
        report.bar.update(row["step"] - report.bar.n)


def draw_curves(rows: list[Row], path: str | Path, title: str) -> None:
    """Draws the curves of a run as PNG: a panel each metric, a line each split.

    A star marks the best value of each evaluated split (of the train split if there
    is no other): the highest accuracy, the lowest of any other metric. Nulls are
    gaps. A long train curve is drawn light, with its running mean on top. A metric
    that spans more than a factor of 50 gets a logarithmic axis.

    Args:
        rows: as `read_metrics` returns them; without any value nothing is drawn.
        path: the PNG to write.
        title: title of the figure.
    """
    # Here, because matplotlib takes a second to import, which a start of training
    # should not wait for. No pyplot: it keeps global state and may want a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    keys = dict.fromkeys(key for row in rows for key in _metrics(row))
    names = [
        name
        for name in dict.fromkeys(("loss", "accuracy", *keys))
        if any(row.get(name) is not None for row in rows)
    ]
    if not names:
        return
    splits = dict.fromkeys(("train", *(row["split"] for row in rows)))
    colors = dict(zip(splits, itertools.cycle(_COLORS), strict=False))
    last = max(rows, key=lambda row: row["step"])
    epochs_per_step = last.get("epoch", 0) / max(last["step"], 1)
    columns = min(len(names), 2)
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(6.4 * columns, 4.8 * lines), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, columns, position)
        known = [row for row in rows if row.get(name) is not None]
        values = [row[name] for row in known]
        is_log = min(values) > 0 and max(values) > 50 * min(values)
        axes.set_yscale("log" if is_log else "linear")
        starred = {row["split"] for row in known} - {"train"} or {"train"}
        for split in splits:
            if any(row["split"] == split for row in known):
                split_rows = [row for row in rows if row["split"] == split]
                _draw_line(axes, name, split_rows, colors[split], split in starred)
        axes.set_xlim(0, max(1.02 * last["step"], 1))
        axes.set_xlabel("step (updates)")
        unit = " (fraction)" if "accuracy" in name else ""
        axes.set_ylabel(name + unit + (", log scale" if is_log else ""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        # Below the panel: there it hides no curve.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        if epochs_per_step:
            to_epoch = (lambda x: x * epochs_per_step, lambda x: x / epochs_per_step)
            axes.secondary_xaxis("top", functions=to_epoch).set_xlabel("epoch")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_file(path, image.getvalue())


def _draw_line(
    axes: "matplotlib.axes.Axes", name: str, rows: list[Row], color: str, star: bool
) -> None:
    """Draws one metric of one split, of which `rows` has some value."""
    split = rows[0]["split"]
    steps = np.array([row["step"] for row in rows])
    # As floats, None is NaN, which is drawn as a gap.
    values = np.array([row.get(name) for row in rows], dtype=float)
    finite = np.isfinite(values)
    label = f"{split} {_number(values[finite][-1])}"
    if star:
        best = (np.nanargmax if "accuracy" in name else np.nanargmin)(values)
        label += f", ★ {_number(values[best])} at step {steps[best]:,}"
        style = {"marker": "*", "markersize": 15, "markeredgecolor": "white"}
        axes.plot(steps[best], values[best], color=color, zorder=4, **style)
    if split != "train":
        size = 5 if len(rows) <= 60 else 2.5
        axes.plot(steps, values, "o-", color=color, label=label, markersize=size)
    elif len(rows) <= _SMOOTH_ABOVE:
        axes.plot(steps, values, color=color, label=label, linewidth=1.8)
        # A line needs two neighbours; a point between gaps needs a marker.
        padded = np.pad(finite, 1)
        alone = finite & ~padded[:-2] & ~padded[2:]
        axes.plot(steps[alone], values[alone], "o", color=color, markersize=4)
    else:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        window = np.ones(len(rows) // 50)
        total = np.convolve(np.where(finite, values, 0), window, mode="same")
        count = np.convolve(finite, window, mode="same")
        mean = np.divide(total, count, out=np.full_like(values, np.nan), where=finite)
        label += f", line: mean of {len(window)} rows"
        axes.plot(steps, mean, color=color, label=label, linewidth=1.8)
