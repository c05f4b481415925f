"""What a person sees of a run: progress, JSON lines, TensorBoard, curves, files."""

import gc
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeVar

from tqdm import tqdm

from lstm_jax.errors import UserError
from lstm_jax.flow import Flow
from lstm_jax.flow_pictures import draw_flow
from lstm_jax.pictures import Row, draw_curves, metrics_of, show_number

if TYPE_CHECKING:
    import tensorboardX

Drawn = TypeVar("Drawn")

_REDRAW_SECONDS = 30.0
FLOW = "flow"  # the split of rows about gradient flow


class Report(NamedTuple):
    """The open handles of a run's report; made by `open_report`."""

    workdir: Path
    total_steps: int
    rows: list[Row]  # every row of metrics.jsonl, grown by `add_row`
    file: TextIO
    writer: "tensorboardX.SummaryWriter"
    bar: tqdm | None  # None: stderr is no terminal, progress is plain lines
    draw: Callable[[list[Row], str], bytes] | None  # the curves; as of `open_report`


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


def write_metrics(workdir: str | Path, rows: list[Row]) -> Path:
    """Writes `metrics.jsonl` of a run anew; its path."""
    path = Path(workdir) / "metrics.jsonl"
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def open_report(
    workdir: str | Path,
    *,
    step: int,
    total_steps: int,
    texts: dict[str, str],
    draw: Callable[[list[Row], str], bytes] | None = None,
) -> Report:
    """Opens the report of a run that starts, or resumes, at `step`.

    Rows past `step`, which a killed run wrote after its last checkpoint, are cut off
    from `metrics.jsonl` and hidden in TensorBoard.

    Args:
      workdir: folder of the run; made if missing.
      step: updates done so far, 0 for a new run.
      total_steps: updates done when the run is complete.
      texts: title to text, shown in TensorBoard (the config, the summary).
      draw: gives a PNG of rows and a title; None: `draw_curves`.

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
    path = write_metrics(workdir, rows)
    # The writer names its file by the second and truncates what is there: without a
    # suffix of its own, a quick restart would erase the events before it.
    suffix = f".{len(list(workdir.glob('events.out.tfevents.*')))}"
    # Absolute: it takes a relative path that begins with "s3:" for a bucket.
    writer = SummaryWriter(
        str(workdir.absolute()),
        purge_step=step + 1,
        flush_secs=10,
        filename_suffix=suffix,
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
    return Report(workdir, total_steps, rows, path.open("a"), writer, bar, draw)


def add_row(report: Report | None, row: Row) -> None:
    """Adds one row of metrics to every output of the report.

    Args:
      report: from `open_report`; None, here and below: nothing is shown.
      row: `step`, `epoch`, `split` ("train", or the name of an evaluated split),
          `seconds`, and metrics, all Python numbers.
    """
    if report is None:
        return
    previous = row_before(report, row["split"])
    (finite,) = write_rows(report, [row])
    for name in metrics_of(finite):
        if finite[name] is not None:
            tag = f"{row['split']}/{name}"
            report.writer.add_scalar(tag, finite[name], row["step"])
    _show(report, row, previous)
    redraw_now_and_then(report, previous, row)


def row_before(report: Report, split: str) -> Row:
    """The row of training, or of evaluation, that was the last before this one."""
    is_train = split == "train"
    return next(
        (r for r in reversed(report.rows) if (r["split"] == "train") == is_train),
        {"step": 0, "seconds": 0.0},
    )


def write_rows(report: Report, rows: list[Row]) -> list[Row]:
    """Adds rows to `metrics.jsonl`, as they are there: not finite is null."""
    written = [
        {
            key: None
            if isinstance(value, float) and not math.isfinite(value)
            else value
            for key, value in row.items()
        }
        for row in rows
    ]
    report.rows.extend(written)
    # One write and one flush: a kill tears the last line at most.
    report.file.write("".join(json.dumps(row) + "\n" for row in written))
    report.file.flush()
    return written


def redraw_now_and_then(report: Report, previous: Row, row: Row) -> None:
    """Draws the curves at the first evaluation after each 30 s of training.

    So that a killed run has curves too.
    """
    periods = [r["seconds"] // _REDRAW_SECONDS for r in (previous, row)]
    if row["split"] != "train" and periods[1] > periods[0]:
        _redraw(report)


def add_flow(report: Report | None, row: Row, flows: Mapping[str, Flow]) -> None:
    """Adds a row about gradient flow, of the split `FLOW`, and draws `flow.png`.

    Args:
      report: from `open_report`.
      row: as of `add_row`. One that is there already, as a run wrote it that was
          killed before it had saved anything, is not added again.
      flows: what is drawn, by layer.
    """
    if report is None:
        return
    places = [(known["step"], known["split"]) for known in report.rows]
    if (row["step"], row["split"]) not in places:
        add_row(report, row)
    title = f"{report.workdir.name}, step {row['step']:,}"
    if picture := drawn("flow.png", lambda: draw_flow(flows, title)):
        write_file(report.workdir / "flow.png", picture)


def _redraw(report: Report) -> None:
    rows = [row for row in report.rows if row["split"] != FLOW]
    write_curves(report.workdir, rows, report.workdir.name, report.draw)


def write_curves(
    workdir: Path,
    rows: list[Row],
    title: str,
    draw: Callable[[list[Row], str], bytes] | None = None,
) -> None:
    """Draws rows of metrics into `curves.png`; `draw` as of `open_report`."""
    if curves := drawn("curves.png", lambda: (draw or draw_curves)(rows, title)):
        write_file(workdir / "curves.png", curves)


def drawn(name: str, draw: Callable[[], Drawn]) -> Drawn | None:
    """Return what `draw()` gives, or None where it fails: a line on stderr says so.

    No picture is worth the numbers of a run.
    """
    # A figure is megabytes of objects that refer to each other. Python finds those that
    # are young in milliseconds; old ones would stay for minutes, ten figures at a time.
    collects = gc.isenabled()
    gc.disable()
    try:
        picture = draw()
        gc.collect(1)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        print(
            f"{name} is not drawn: {type(error).__name__}: {reason}",
            file=sys.stderr,
            flush=True,
        )
        return None
    finally:
        if collects:
            gc.enable()
    return picture


def say(report: Report | None, line: str) -> None:
    """Shows a line on stderr, above the bar where there is one."""
    if report is None:
        return
    if report.bar is None:
        # One write, unlike print's two: an interrupt does not fall before the newline.
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    else:
        report.bar.write(line, file=sys.stderr)


def close_report(report: Report | None) -> None:
    """Closes every output of the report and draws the curves a last time."""
    if report is None:
        return
    if report.bar is not None:
        report.bar.close()
    report.file.close()
    report.writer.close()
    _redraw(report)


def _show(report: Report, row: Row, previous: Row) -> None:
    """Shows a row on stderr: moves the bar, or prints a line."""
    metrics = [f"{name} {show_number(row[name])}" for name in metrics_of(row)]
    step = f"step {row['step']}/{report.total_steps}"
    if row["split"] != "train":
        line = "  ".join([row["split"], *metrics])
        # Above the bar no train line stands that says which step this is.
        say(report, ("" if report.bar is None else step) + "  " + line)
        return
    steps = max(row["step"] - previous["step"], 1)
    ms = 1000 * (row["seconds"] - previous["seconds"]) / steps
    epoch = [f"epoch {row['epoch']:.2f}"] if "epoch" in row else []
    parts = [*epoch, f"{ms:.{1 if ms >= 1 else 3}f} ms/step", *metrics]
    if report.bar is None:
        say(report, "  ".join([step, *parts]))
    else:
        report.bar.set_postfix_str("  ".join(parts), refresh=False)
        report.bar.update(row["step"] - report.bar.n)
