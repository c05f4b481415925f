"""Tests of lstm_jax.data.tables."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lstm_jax.data.tables import Labelled, hold_out, label_names, read_labelled
from lstm_jax.errors import UserError


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def random_rows(seed: int) -> Labelled:
    """Texts of every character that means something to a CSV or JSON reader."""
    rng = np.random.default_rng(seed)
    characters = list("ab \t\n\r,;\"'\\{}é日\u2028\x85😀")
    texts = ["".join(rng.choice(characters, rng.integers(0, 12))) for _ in range(200)]
    return Labelled(texts, [f"class {i % 3}" for i in range(200)])


@pytest.mark.parametrize("ending", ["csv", "tsv", "CSV", "TSV"])
def test_delimited_file_round_trip(tmp_path: Path, ending: str) -> None:
    texts, labels = random_rows(0)
    path = tmp_path / f"mine.{ending}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if ending.lower() == "tsv" else ",")
        writer.writerow(["id", "sentiment", "review"])
        writer.writerows(zip(range(200), labels, texts, strict=True))
    assert read_labelled(str(path), "review", "sentiment") == (texts, labels)


def test_json_lines_round_trip(tmp_path: Path) -> None:
    texts, labels = random_rows(1)
    for ascii_only in (True, False):
        rows = [
            json.dumps({"label": label, "text": text}, ensure_ascii=ascii_only)
            for text, label in zip(texts, labels, strict=True)
        ]
        path = write(tmp_path, "mine.jsonl", "\r\n\n".join(rows))
        assert read_labelled(path) == (texts, labels)


def test_labels_become_strings(tmp_path: Path) -> None:
    rows = '{"text":"a","label":%s}\n'
    path = write(tmp_path, "a.jsonl", "".join(rows % x for x in ("1", "-2", '" b "')))
    assert read_labelled(path).labels == ["1", "-2", "b"]
    path = write(tmp_path, "b.jsonl", rows % "true" + rows % "false")
    assert read_labelled(path).labels == ["true", "false"]
    path = write(tmp_path, "c.csv", "text,label\n a ,\t1 \n,0\n")
    assert read_labelled(path) == ([" a ", ""], ["1", "0"])


def test_byte_order_mark_blank_lines_and_spare_columns(tmp_path: Path) -> None:
    content = "\n\ntext,x,label\r\n\r\na,,p\r\nb,1,q\r\n\r\n"
    path = write(tmp_path, "a.csv", b"\xef\xbb\xbf" + content.encode())
    assert read_labelled(path) == (["a", "b"], ["p", "q"])
    content = '\ufeff{"text":"a","label":"p"}\n{"text":"b","label":"q","x":[]}'
    path = write(tmp_path, "a.jsonl", content)
    assert read_labelled(path) == (["a", "b"], ["p", "q"])


def test_a_million_characters_leave_the_limit_as_it_was(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "x, " * 400_000
    path = write(tmp_path, "a.csv", f'text,label\n"{long}",1\nb,0\n')
    assert read_labelled(path).texts == [long, "b"]
    assert csv.field_size_limit() == limit
    path = write(tmp_path, "b.csv", f'text,label\n"{long}",1\n"b,0\n')
    with pytest.raises(UserError, match="line 3"):
        read_labelled(path)
    assert csv.field_size_limit() == limit


def test_quotes_between_tabs_are_text_unless_they_enclose_a_field(
    tmp_path: Path,
) -> None:
    """As tools write that quote nothing, and as spreadsheets do."""
    rows = [
        ('"Fine" said he', "good"),
        ('he said "fine"', "good"),
        ('"unclosed', "bad"),
        ('"', "bad"),
        ('5"', "bad"),
        ('"a"" b', "good"),
    ]
    lines = "".join(f"{text}\t{label}\n" for text, label in rows)
    path = write(tmp_path, "a.tsv", "text\tlabel\n" + lines)
    assert read_labelled(path) == tuple(map(list, zip(*rows, strict=True)))
    content = 'text\tlabel\r\n"a ""b"" c"\t"good"\r\n"two\nlines, a\ttab"\tbad\r\n'
    path = write(tmp_path, "b.tsv", content)
    texts = ['a "b" c', "two\nlines, a\ttab"]
    assert read_labelled(path) == (texts, ["good", "bad"])


JOINED = '"fine start\tgood\nbad ending"\tbad\nplain row\tgood\n'


def test_two_quotes_that_are_text_join_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tlabel\n" + JOINED)
    texts = ['"fine start', 'bad ending"', "plain row"]
    assert read_labelled(path) == (texts, ["good", "bad", "good"])
    # Sixty rows stay sixty, whichever column is first and whatever is between.
    rows = [(f"row {i}", ("good", "bad")[i % 2]) for i in range(60)]
    for i in (3, 20, 41):
        rows[i], rows[i + 7] = (f'"row {i}', "bad"), (f'row {i}"', "good")
    for header, order in (("text\tlabel", 1), ("label\ttext", -1)):
        lines = ["\t".join(row[::order]) for row in rows]
        lines.insert(5, "")
        path = write(tmp_path, "b.tsv", "\n".join([header, *lines]))
        assert read_labelled(path) == tuple(map(list, zip(*rows, strict=True)))
    # Where the joined row would have other fields than the header, no label decides.
    path = write(tmp_path, "c.tsv", 'label\ttext\nup\t"a\ndown\tb"\tc\n')
    with pytest.raises(UserError, match=r"line 2: 3 fields where the header has 2"):
        read_labelled(path)


HOLDS_ROWS = (
    "over lines that are rows by themselves; if its quote is text, quote the field and "
    "double it; if not, take the newlines out"
)


@pytest.mark.parametrize(
    ("name", "content", "line", "last"),
    [
        ("a.csv", "text,label\n" + JOINED.replace("\t", ","), 2, 3),
        ("a.csv", 'label,text\nup,x\nup,"a\ndown,b"\ndown,y\n', 3, 4),
        ("a.tsv", 'label\ttext\nup\t"a\ndown\tb"\nup\tb\n', 2, 3),  # is it a label?
        ("a.tsv", "text\tlabel\n" + JOINED.replace("good\n", "good\nx\n", 1), 2, 4),
    ],
)
def test_what_may_be_rows_or_a_text_is_refused(
    tmp_path: Path, name: str, content: str, line: int, last: int
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError) as error:
        read_labelled(path)
    goes = f"{path}, line {line}: a quoted field goes on to line {last}, "
    assert str(error.value) == goes + HOLDS_ROWS


def test_a_text_of_several_lines_is_one(tmp_path: Path) -> None:
    """Each of them may have as many fields as the header, but not a label."""
    content = 'text,label\n"Well, I came\nand saw",good\n"no, good",bad\n'
    path = write(tmp_path, "a.csv", content)
    texts = ["Well, I came\nand saw", "no, good"]
    assert read_labelled(path) == (texts, ["good", "bad"])
    content = 'text\tlabel\n"a\tb\nc"\tgood\n"two\nlines"\tbad\n'
    path = write(tmp_path, "a.tsv", content)
    assert read_labelled(path) == (["a\tb\nc", "two\nlines"], ["good", "bad"])


QUOTES = "a quoted field ends with a quote, and a quote inside it is doubled"
COLUMNS = "set data.text_column and data.label_column"
OBJECT = 'a line looks like {"text": "...", "label": "..."}'
GOOD = '{"text": "a", "label": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\na,1\nb\xe9,0", ", line 3: not UTF-8 (byte 16); convert "
         "it, for example with iconv -t UTF-8"),
        ("a.csv", b"\xef\xbb\xbftext,label\n\xff,0", ", line 2: not UTF-8 (byte 14); "
         "convert it, for example with iconv -t UTF-8"),
        ("a.csv", 'text,label\n"a\nb",1\nc\0,0\n', ", line 4: a NUL byte; save the "
         "file as plain UTF-8 text"),
        ("a.jsonl", GOOD + "\0", ", line 2: a NUL byte; save the file as plain UTF-8 "
         "text"),
        ("a.csv", "text,stars\na,1\n", ", line 1: no column 'label'; there are "
         f"'text', 'stars': {COLUMNS}"),
        ("a.tsv", "\ntext,label\na,1\n", ", line 2: no column 'text'; there are "
         f"'text,label': {COLUMNS}"),
        ("a.csv", "text,label,text\na,1,b\n", ", line 1: two columns 'text'; there "
         f"are 'text', 'label', 'text': {COLUMNS}"),
        ("a.csv", 'text,label\n"a\n\n",1\nb, c,0\n', ", line 5: 3 fields where the "
         "header has 2; quote fields that hold a comma or a newline"),
        ("a.tsv", "text\tlabel\na\t1\nb\n", ", line 3: 1 fields where the header has "
         "2; quote fields that hold a tab or a newline"),
        ("a.csv", 'text,label\na,1\n"b\n,0\nc,1\n', ", line 3: unexpected end of data; "
         + QUOTES),
        ("a.csv", 'text,label\n"a" b,1\n', ", line 2: ',' expected after '\"'; "
         + QUOTES),
        ("a.csv", "text,label\na,1\nb, \n", ", line 3: the label is empty"),
        ("a.jsonl", GOOD + '{"text": "b", "label": ""}', ", line 2: the label is "
         "empty"),
        ("a.jsonl", GOOD + "\n{'text': 1}", ", line 3: not JSON (Expecting property "
         "name enclosed in double quotes, column 2)"),
        ("a.jsonl", GOOD + '["b", 0]', f", line 2: ['b', 0] is no object; {OBJECT}"),
        ("a.jsonl", GOOD + "7" * 99, f", line 2: {'7' * 18}...{'7' * 19} is no object; "
         + OBJECT),
        ("a.jsonl", GOOD + '{"text": "b"}', ", line 2: no key 'label'; there are "
         f"'text': {COLUMNS}"),
        ("a.jsonl", "{}", f", line 1: no key 'text'; there are none: {COLUMNS}"),
        ("a.jsonl", GOOD + '{"text": null, "label": 0}', ", line 2: 'text' is None, "
         "not a string"),
        ("a.jsonl", GOOD + '{"text": "b", "label": 0.5}', ", line 2: 'label' is 0.5, "
         "not a string, an integer or a boolean"),
        ("a.jsonl", GOOD + '{"text": "\\ud83d", "label": 0}', ", line 2: half of a "
         "surrogate pair, which is no character"),
        ("a.csv", "", " is empty: it needs a header row that names columns"),
        ("a.csv", "text,label\n\n", " has no rows: it needs a text and a label a row"),
        ("a.jsonl", "\n", " has no rows: it needs a text and a label a row"),
        ("a.txt", "text,label\na,1\n", ": the ending '.txt' is unknown; data.path "
         "takes a .csv, .tsv or .jsonl file"),
        ("reviews", "text,label\na,1\n", ": the ending '' is unknown; data.path takes "
         "a .csv, .tsv or .jsonl file"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError) as error:
        read_labelled(path)
    assert str(error.value) == path + message


@pytest.mark.parametrize("bad", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}"])
def test_json_beyond_pythons_limits_is_named(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path, "a.jsonl", GOOD + bad)
    with pytest.raises(UserError) as error:
        read_labelled(path)
    assert str(error.value).startswith(f"{path}, line 2: not JSON (")
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, why in (
        ("no.csv", "No such file or directory"),
        ("folder.csv", "Is a directory"),
    ):
        with pytest.raises(UserError) as error:
            read_labelled(str(tmp_path / name))
        assert str(error.value) == (
            f"cannot read {str(tmp_path / name)!r} ({why}): data.path takes a .csv, "
            ".tsv or .jsonl file"
        )


def test_one_column_for_both(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,1\nb,0\n")
    with pytest.raises(
        UserError, match=r"^data.text_column and data.label_column are both 'text': "
    ):
        read_labelled(path, "text", "text")


def test_label_names_are_in_order() -> None:
    assert label_names(["10", "9", "-1.5", "9"]) == ["-1.5", "9", "10"]
    assert label_names(["pos", "neg", "pos"]) == ["neg", "pos"]
    assert label_names(["10", "9", "nan"]) == ["10", "9", "nan"]
    # Two spellings of a number are two classes, in the same order every time.
    assert label_names(["1.0", "1", "0"]) == label_names(["1", "0", "1.0"])
    assert set(label_names(["1.0", "1", "0"])) == {"0", "1", "1.0"}


@pytest.mark.parametrize("size", [2, 3, 7, 100, 501])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_hold_out_splits_every_class(size: int, share: float) -> None:
    labels = list(
        np.random.default_rng(size).choice(["a", "b", "c"], size, p=[0.7, 0.2, 0.1])
    )
    labels = [str(label) for label in labels]
    train, held_out = hold_out(labels, share, 3)
    assert sorted([*train, *held_out]) == list(range(size))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    count = min(max(round(size * share), 1), size - 1)
    whole = Counter(labels)
    part = Counter(labels[i] for i in held_out)
    for label in whole:
        assert part[label] < whole[label]
        # One row stays to train on, whatever the share.
        kept = min(whole[label] * count / size, whole[label] - 1)
        assert abs(part[label] - kept) < 1


def test_hold_out_favours_no_class() -> None:
    labels = ["a"] * 60 + ["b"] * 35 + ["c"] * 5
    drawn = [Counter(labels[i] for i in hold_out(labels, 0.1, s)[1]) for s in range(9)]
    assert all(6 <= d["a"] <= 6 and 3 <= d["b"] <= 4 and d["c"] <= 1 for d in drawn)
    # What is left over by rounding is not the last class's to give.
    assert all(d["c"] == 0 for d in drawn)
    # The last class of one row is always trained on, and so is the first.
    for single in ("a", "z"):
        labels = ["b"] * 12 + [single]
        for seed in range(20):
            train, held_out = hold_out(labels, 0.2, seed)
            assert 12 in train
            assert len(held_out) == 3


def test_hold_out_is_a_function_of_its_seed() -> None:
    labels = ["a", "b"] * 500
    first, again, other = (hold_out(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert (first == again).all()
    assert len(np.intersect1d(first, other)) == pytest.approx(40, abs=20)
    # Drawn from the whole file, not from a part of it.
    assert np.bincount(first // 100).min() > 5


def test_hold_out_of_nothing() -> None:
    for share in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(
            UserError,
            match=re.escape(f"a held-out share of {share}: it must be between 0 and 1"),
        ):
            hold_out(["a", "b"], share, 0)
    with pytest.raises(UserError, match=r"^1 rows cannot be split: at least 2 "):
        hold_out(["a"], 0.5, 0)


def test_hold_out_of_classes_of_a_row_each() -> None:
    """What was drawn may be all that there is of its class."""
    for seed in range(20):
        train, held_out = hold_out(["a", "b", "c", "d", "e", "e"], 0.2, seed)
        assert len(held_out) == 1
        assert held_out[0] in (4, 5)
        assert len(train) == 5
    with pytest.raises(
        UserError, match=r"^each of 2 rows has a label of its own, so that none can be "
    ):
        hold_out(["a", "b"], 0.5, 0)
