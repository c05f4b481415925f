"""Progress, JSON lines, TensorBoard, curves and files of a run."""

import gc
import io
import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from lstm_jax import pictures, reporting
from lstm_jax.errors import UserError


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


@pytest.fixture
def undrawn(monkeypatch):
    """Spares a test of something else the time of drawing."""
    monkeypatch.setattr(reporting, "draw_curves", lambda rows, title: b"")


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
@pytest.mark.parametrize("name", ["s3:run", "gs:", "hdfs:a"])
def test_tensorboard_events_in_a_folder_with_a_scheme_in_its_name(
    tmp_path, monkeypatch, undrawn, name
):
    monkeypatch.chdir(tmp_path)
    add_rows(name, [make_row(1)])
    (path,) = (tmp_path / name).glob("events.out.tfevents.*")
    assert scalars(read_events(path))[0] == ("train/loss", 1, 1.0)


def test_plain_progress_lines(tmp_path, capsys):
    rows = [
        make_row(50, loss=1.23454, accuracy=0.8123),
        make_row(50, "windows", loss=0.0451, accuracy=0.985),
        make_row(60, loss=math.nan, perplexity=3e-6) | {"seconds": 12.5061},
        make_row(80, loss=0.0, perplexity=1.25e7) | {"seconds": 138.5061},
    ]
    add_rows(tmp_path, rows)
    assert capsys.readouterr().err == (
        "step 50/100  epoch 5.00  250.0 ms/step  loss 1.2345  accuracy 0.8123\n"
        "  windows  loss 0.0451  accuracy 0.9850\n"
        "step 60/100  epoch 6.00  0.610 ms/step  loss nan  accuracy 0.5000"
        "  perplexity 3.000e-06\n"
        "step 80/100  epoch 8.00  6300.0 ms/step  loss 0.0000  accuracy 0.5000"
        "  perplexity 1.250e+07\n"
    )
    # The time of a step after a restart counts from the last row that was kept.
    add_rows(tmp_path, [make_row(70) | {"seconds": 12.5561}], step=60)
    assert "step 70/100  epoch 7.00  5.0 ms/step" in capsys.readouterr().err


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
    assert shown.endswith(
        ", epoch 10.00  250.0 ms/step  loss 0.2500  accuracy 0.5000]\n"
    )


def test_no_value_draws_nothing(tmp_path):
    add_rows(tmp_path, [make_row(1, loss=math.nan, accuracy=math.nan)])
    assert not (tmp_path / "curves.png").exists()


def test_curves_are_redrawn_every_30_seconds_of_training(tmp_path, monkeypatch):
    drawings = []

    def draw(rows, title):
        drawings.append(f"{title} of {len(rows)} rows".encode())
        return drawings[-1]

    monkeypatch.setattr(reporting, "draw_curves", draw)
    workdir = tmp_path / "run"
    report = reporting.open_report(workdir, step=0, total_steps=100, texts={})
    drawn = []
    tests = (29, 32, 33, 95)
    for seconds in (29, 31, 32, 33, 61, 95):
        split = "test" if seconds in tests else "train"
        reporting.add_row(report, make_row(seconds, split) | {"seconds": seconds})
        drawn.append(len(drawings))
    assert drawn == [0, 0, 1, 1, 1, 2]
    reporting.close_report(report)
    assert drawings == [b"run of 3 rows", b"run of 6 rows", b"run of 6 rows"]
    assert (workdir / "curves.png").read_bytes() == drawings[-1]


def test_no_figure_stays_when_curves_are_drawn(tmp_path):
    """It would until the next full collection: 6 MB a figure."""

    def figures():
        return sum(type(found).__name__ == "Figure" for found in gc.get_objects())

    report = reporting.open_report(tmp_path, step=0, total_steps=1, texts={})
    reporting.add_row(report, make_row(1))
    before = figures()
    reporting.close_report(report)
    assert (tmp_path / "curves.png").exists()
    assert figures() == before
    assert gc.isenabled()


def test_a_picture_that_cannot_be_drawn_costs_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "curves.png").write_bytes(b"before")

    def fail(rows, title):
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(reporting, "draw_curves", fail)
    add_rows(tmp_path, [make_row(1)])
    assert len(reporting.read_metrics(tmp_path)) == 1
    assert (tmp_path / "curves.png").read_bytes() == b"before"
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "curves.png is not drawn: RuntimeError: no font"
    assert gc.isenabled()


def test_curves_of_a_run_are_those_of_its_rows(tmp_path):
    rows = [make_row(10), make_row(10, "test")]
    add_rows(tmp_path, rows)
    curves = pictures.draw_curves(rows, tmp_path.name)
    assert curves.startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").read_bytes() == curves


def test_import_is_light():
    code = (
        "import sys, lstm_jax.reporting;"
        "print({'matplotlib', 'tensorboardX', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
