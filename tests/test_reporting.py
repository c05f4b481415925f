"""Progress, JSON lines, TensorBoard, curves and files of a run."""

import io
import json
import math
import os
import struct
import subprocess
import sys

import matplotlib.colors
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from lstm_jax import reporting
from lstm_jax.errors import UserError

BLUE, ORANGE, GREEN = reporting._COLORS[:3]


def make_row(step, split="train", **metrics):
    metrics = {"loss": 2.0 / (1 + step), "accuracy": 0.5} | metrics
    row = {"step": step, "epoch": step / 10, "split": split, **metrics}
    return row | {"seconds": 0.25 * step}


def add_rows(workdir, rows, *, step=0, texts=None):
    report = reporting.open_report(
        workdir, step=step, total_steps=100, texts=texts or {}
    )
    for row in rows:
        reporting.add_row(report, row)
    reporting.close_report(report)


def read_events(path):
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        record = data[12 : 12 + length]
        (crc,) = struct.unpack("<I", data[12 + length : 16 + length])
        assert crc == masked_crc32c(record)
        events.append(Event.FromString(record))
        data = data[16 + length :]
    return events


def scalars(events):
    return [
        (value.tag, event.step, value.simple_value)
        for event in events
        for value in event.summary.value
        if not value.tag.endswith("/text_summary")
    ]


def count_pixels(path, color):
    image = matplotlib.image.imread(path)[..., :3]
    return int((np.abs(image - matplotlib.colors.to_rgb(color)) < 0.01).all(-1).sum())


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn in a test."""
    drawn, savefig = [], matplotlib.figure.Figure.savefig

    def keep(figure, *args, **kwargs):
        drawn.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return drawn


@pytest.fixture
def undrawn(monkeypatch):
    """Spares a test of something else the time of drawing."""
    monkeypatch.setattr(reporting, "draw_curves", lambda rows, path, title: None)


@pytest.mark.usefixtures("undrawn")
def test_each_row_is_on_disk_when_added_and_not_finite_is_null(tmp_path):
    report = reporting.open_report(tmp_path, step=0, total_steps=100, texts={})
    rows = [make_row(1, loss=math.nan), make_row(2, loss=math.inf), make_row(2, "test")]
    for number, row in enumerate(rows, start=1):
        reporting.add_row(report, row)
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text.endswith("}\n")
        assert text.count("\n") == number
    reporting.close_report(report)
    assert text.splitlines()[0] == (
        '{"step": 1, "epoch": 0.1, "split": "train", "loss": null, "accuracy": 0.5, '
        '"seconds": 0.25}'
    )
    expected = [rows[0] | {"loss": None}, rows[1] | {"loss": None}, rows[2]]
    assert reporting.read_metrics(tmp_path) == expected


@pytest.mark.usefixtures("undrawn")
def test_resume_cuts_rows_past_the_step_and_the_torn_line(tmp_path):
    rows = [make_row(step, split) for step in (10, 20, 30) for split in ("train", "x")]
    lines = [json.dumps(row) + "\n" for row in rows]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines) + lines[0][:25])
    assert reporting.read_metrics(tmp_path) == rows
    add_rows(tmp_path, [make_row(25)], step=20)
    assert path.read_text() == "".join(lines[:4]) + json.dumps(make_row(25)) + "\n"


@pytest.mark.usefixtures("undrawn")
def test_resume_completes_a_line_that_lacks_only_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(make_row(10)))
    add_rows(tmp_path, [make_row(20)], step=10)
    assert reporting.read_metrics(tmp_path) == [make_row(10), make_row(20)]


@pytest.mark.usefixtures("undrawn")
def test_new_run_forgets_rows_of_a_run_killed_before_its_first_checkpoint(tmp_path):
    add_rows(tmp_path, [make_row(10)])
    add_rows(tmp_path, [make_row(5)])
    assert reporting.read_metrics(tmp_path) == [make_row(5)]


def test_read_metrics_of_no_file_and_of_a_damaged_one(tmp_path):
    assert reporting.read_metrics(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        reporting.open_report(tmp_path, step=0, total_steps=1, texts={})
    assert path.read_text() == '{"step": 1}\n{"st\n{"step": 3}\n'


def test_write_file_leaves_the_old_file_until_the_new_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    reporting.write_file(path, "old")
    seen = []
    replace = os.replace

    def look(source, target):
        seen.append((path.read_text(), source.read_text(), source.parent))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    reporting.write_file(path, "nü")
    assert seen == [("old", "nü", tmp_path)]
    assert path.read_text() == "nü"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("undrawn")
def test_tensorboard_events_of_a_run_and_of_its_resumption(tmp_path):
    rng = np.random.default_rng(0)
    first, second, third = rng.uniform(size=3).tolist()
    rows = [make_row(10, loss=first, accuracy=math.nan), make_row(10, "test")]
    add_rows(tmp_path, rows, texts={"config": "a: 1\nb: 2"})
    rows = [make_row(20, loss=second, perplexity=third)]
    add_rows(tmp_path, rows, step=10)  # within a second: a file of its own all the same
    old, new = (
        read_events(path) for path in sorted(tmp_path.glob("events.out.tfevents.*"))
    )
    loss = make_row(10)["loss"]
    assert scalars(old) == [
        ("train/loss", 10, pytest.approx(first)),
        ("test/loss", 10, pytest.approx(loss)),
        ("test/accuracy", 10, 0.5),
    ]
    assert scalars(new) == [
        ("train/loss", 20, pytest.approx(second)),
        ("train/accuracy", 20, 0.5),
        ("train/perplexity", 20, pytest.approx(third)),
    ]
    texts = [v for e in old for v in e.summary.value if "text_summary" in v.tag]
    assert [v.tag for v in texts] == ["config/text_summary"]
    assert texts[0].tensor.string_val[0] == b"    a: 1\n    b: 2"
    starts = [e.step for e in new if e.session_log.status == SessionLog.START]
    assert starts == [11]  # hides steps 11, 12, ... of the file before; 10 is kept


@pytest.mark.usefixtures("undrawn")
def test_plain_progress_lines(tmp_path, capsys):
    rows = [
        make_row(50, loss=1.23454, accuracy=0.8123),
        make_row(50, "windows", loss=0.0451, accuracy=0.985),
        make_row(60, loss=math.nan, perplexity=3e-6) | {"seconds": 12.5061},
        make_row(80, loss=0.0, perplexity=1.25e7) | {"seconds": 138.5061},
    ]
    add_rows(tmp_path, rows)
    assert capsys.readouterr().err == (
        "step 50/100  epoch 5  250.0 ms/step  loss 1.2345  accuracy 0.8123\n"
        "  windows  loss 0.0451  accuracy 0.9850\n"
        "step 60/100  epoch 6  0.610 ms/step  loss nan  accuracy 0.5000"
        "  perplexity 3.000e-06\n"
        "step 80/100  epoch 8  6300.0 ms/step  loss 0.0000  accuracy 0.5000"
        "  perplexity 1.250e+07\n"
    )
    # The time of a step after a restart counts from the last row that was kept.
    add_rows(tmp_path, [make_row(70) | {"seconds": 12.5561}], step=60)
    assert "step 70/100  epoch 7  5.0 ms/step" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_bar_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    rows = [make_row(60, loss=1.5), make_row(60, "windows"), make_row(100, loss=0.25)]
    add_rows(tmp_path, rows, step=20)
    shown = sys.stderr.getvalue()
    assert "step 20/100 |" in shown.split("\r")[1]
    assert "\rstep 60/100  windows  loss 0.0328  accuracy 0.5000\n" in shown
    assert "step 100/100 |##########| [" in shown
    assert shown.endswith(", epoch 10  250.0 ms/step  loss 0.2500  accuracy 0.5000]\n")


def test_curves_show_every_split_in_its_color(tmp_path):
    rng = np.random.default_rng(1)
    rows = []
    for step in range(10, 210, 10):
        rows.append(make_row(step, loss=float(rng.uniform(1, 2))))
        if step % 40 == 0:
            rows.append(make_row(step, "test", loss=float(rng.uniform(1, 2))))
    add_rows(tmp_path, rows)
    path = tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert matplotlib.image.imread(path).shape[:2] == (576, 1536)
    assert count_pixels(path, BLUE) > 500
    assert count_pixels(path, ORANGE) > 500
    assert count_pixels(path, GREEN) == 0


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("step", [0, 7])
def test_a_single_row_draws_a_visible_point(tmp_path, split, step):
    path = tmp_path / "curves.png"
    reporting.draw_curves([make_row(step, split)], path, "one")
    assert count_pixels(path, BLUE if split == "train" else ORANGE) > 100


def test_a_train_point_between_gaps_is_visible(tmp_path, figures):
    losses = [3.0, None, 2.0, None, 1.5, 1.4]
    rows = [make_row(step, loss=loss) for step, loss in enumerate(losses)]
    reporting.draw_curves([*rows, make_row(5, "test")], tmp_path / "curves.png", "gap")
    # No star among the lines: another split was evaluated.
    line, points = [a for a in figures[0].axes[0].lines if a.get_color() == BLUE]
    np.testing.assert_array_equal(line.get_ydata(), np.array(losses, float))
    assert (points.get_marker(), points.get_linestyle()) == ("o", "None")
    np.testing.assert_array_equal(points.get_xdata(), [0, 2])
    np.testing.assert_array_equal(points.get_ydata(), [3.0, 2.0])


def test_legend_names_the_final_and_the_best_value(tmp_path, figures):
    rows = [{"step": 500, "split": "test", "bits": 2.0}]
    for step, loss, accuracy in [(1000, 0.9, 0.7), (2000, 0.5, 0.9), (3000, 0.6, 0.8)]:
        rows.append(make_row(step, loss=loss / 2, accuracy=accuracy / 2))
        rows.append(make_row(step, "test", loss=loss, accuracy=accuracy, bits=loss))
    rows.append(make_row(4000, "test", loss=None, accuracy=None))
    reporting.draw_curves(rows, tmp_path / "curves.png", "run")
    labels = {
        axes.get_ylabel(): [text.get_text() for text in axes.get_legend().get_texts()]
        for axes in figures[0].axes
    }
    assert list(labels) == ["loss", "accuracy (fraction)", "bits"]
    assert labels == {
        "loss": ["train 0.3000", "test 0.6000, ★ 0.5000 at step 2,000"],
        "accuracy (fraction)": ["train 0.4000", "test 0.8000, ★ 0.9000 at step 2,000"],
        "bits": ["test 0.6000, ★ 0.5000 at step 2,000"],
    }
    assert [axes.get_xlabel() for axes in figures[0].axes] == ["step (updates)"] * 3
    star = next(a for a in figures[0].axes[1].lines if a.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2000, 0.9)
    # 4000 steps are 400 epochs.
    (top,) = figures[0].axes[0].child_axes
    assert top.get_xlabel() == "epoch"
    np.testing.assert_allclose(top.get_xlim(), (0, 408))


def test_a_long_train_curve_gets_its_running_mean(tmp_path, figures):
    rng = np.random.default_rng(2)
    losses = rng.uniform(0.01, 1, size=350)
    losses[[0, 100, 101]] = math.nan
    rows = [make_row(i, loss=None if np.isnan(v) else v) for i, v in enumerate(losses)]
    rows.append(make_row(350, "test"))
    reporting.draw_curves(rows, tmp_path / "curves.png", "long")
    axes = figures[0].axes[0]
    assert axes.get_yscale() == "log"
    raw, mean = [line for line in axes.lines if line.get_color() == BLUE]
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    assert raw.get_alpha() == 0.25
    expected = [  # 350 // 50 = 7 rows, three on each side; a gap stays a gap
        math.nan if np.isnan(v) else np.nanmean(losses[max(i - 3, 0) : i + 4])
        for i, v in enumerate(losses)
    ]
    np.testing.assert_allclose(mean.get_ydata(), expected, rtol=1e-12)
    assert mean.get_label().endswith(", line: mean of 7 rows")


def test_no_value_draws_nothing(tmp_path):
    add_rows(tmp_path, [make_row(1, loss=math.nan, accuracy=math.nan)])
    assert not (tmp_path / "curves.png").exists()


def test_curves_are_redrawn_every_30_seconds_of_training(tmp_path, figures):
    report = reporting.open_report(tmp_path, step=0, total_steps=100, texts={})
    drawn = []
    tests = (29, 32, 33, 95)
    for seconds in (29, 31, 32, 33, 61, 95):
        split = "test" if seconds in tests else "train"
        reporting.add_row(report, make_row(seconds, split) | {"seconds": seconds})
        drawn.append(len(figures))
    assert drawn == [0, 0, 1, 1, 1, 2]
    assert count_pixels(tmp_path / "curves.png", ORANGE) > 100
    reporting.close_report(report)
    assert len(figures) == 3


def test_import_is_light():
    code = (
        "import sys, lstm_jax.reporting;"
        "print({'matplotlib', 'tensorboardX', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
