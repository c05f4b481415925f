"""Tests of lstm_jax.data.spelling: what a reader takes for the same is the same."""

# ruff: noqa: RUF001

import json
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_datasets import prepare_tiny_imdb
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Normalizer
from toy_runs import hashes, toy_config

from lstm_jax import continuation, prediction, training, workdirs
from lstm_jax.config import Config
from lstm_jax.data import reviews, spelling, web_traffic
from lstm_jax.data.corpus import read_corpus
from lstm_jax.data.reviews import UNKNOWN
from lstm_jax.data.series import read_series
from lstm_jax.data.streams import decode_stream, read_streams
from lstm_jax.data.tables import Labelled, read_labelled
from lstm_jax.errors import UserError
from lstm_jax.tasks import Task, make_task

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
LOWERED, KEPT = spelling.words(lowercase=True), spelling.words(lowercase=False)
TOKENS, CHARACTERS = spelling.tokens(), spelling.characters()
ALL = pytest.mark.parametrize("normalizer", [LOWERED, KEPT, TOKENS, CHARACTERS])
# The library's tables are those of Unicode 9.
KNOWN = st.characters(exclude_categories=["Cs"], max_codepoint=0x2FFF).filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) != "Cn"
)
# What NFKC glues to a letter or digit before it.
GLUED = set("™℠¹²³⁰⁴⁵⁶⁷⁸⁹¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅟↉")
HARD = st.sampled_from(
    [*"eEiIh'`´’ 3٣½²™-", *"\u0301\u0307\u0331\u0323\u200b\u00ad\ufeff\u034fİΣςﬁ"]
)


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("re\u0301ussi", "r\u00e9ussi"),
        ("RE\u0301USSI", "r\u00e9ussi"),
        ("don’t", "don't"),
        ("don‘t", "don't"),
        ("donʼt", "don't"),
        ("don＇t", "don't"),
        ("don′t", "don't"),
        ("don´t", "don't"),
        ("don`t", "don't"),
        ("don\x92t", "don't"),
        ("\u201aich\u2018", "'ich'"),
        ("ΣΑΣ", "σασ"),
        ("σας", "σασ"),
        ("ﬁre", "fire"),
        ("ＡＢＣ１２", "abc12"),
        ("１٣३৩๓", "13333"),
        ("𝟛", "3"),
        ("a\u00a0b", "a b"),
        ("no\u00adthing", "nothing"),
        ("no\u200bthing\ufeff", "nothing"),
        ("\u202eabc\u202c", "abc"),
        ("e\u200b\u0301", "\u00e9"),  # composed where nothing stands between any more
        ("H\u0331", "\u1e96"),  # a letter in lower case alone
        ("İstanbul", "istanbul"),
        ("well‑known", "well-known"),
        ("−5", "-5"),
        ("“so”", '"so"'),
        ("wait…", "wait..."),
        ("¨so¨", " so "),
        # A quote is none between letters; what is not the same stays apart.
        ("`so`", "`so`"),
        ("5′", "5′"),
        ("3½", "3 1⁄2"),
        ("10²", "10 2"),
        ("caf\u00e9™", "caf\u00e9 tm"),
        ("word™", "word tm"),
        ("H₂O", "h2o"),
        ("resume", "resume"),
        ("résumé", "résumé"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_one_spelling(written: str, word: str) -> None:
    for form in (written, unicodedata.normalize("NFD", written)):
        assert LOWERED.normalize_str(form) == word


def test_case_is_kept() -> None:
    assert KEPT.normalize_str("Re\u0301ussi “İ”") == 'R\u00e9ussi "İ"'


def test_digits_of_every_script() -> None:
    digits = [
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) == "Nd"
    ]
    assert len(digits) > 600
    wanted = "".join(str(unicodedata.digit(character)) for character in digits)
    assert LOWERED.normalize_str("".join(digits)) == wanted


def test_ascii_is_left_alone_but_for_case() -> None:
    text = "".join(map(chr, range(128))) + ' it\'s `so` "a-b" <br />\r\n'
    assert LOWERED.normalize_str(text) == text.lower()
    assert KEPT.normalize_str(text) == CHARACTERS.normalize_str(text) == text


@ALL
@settings(max_examples=40)
@given(text=st.text(st.one_of(HARD, KNOWN), max_size=8))
def test_twice_is_as_once(normalizer: Normalizer, text: str) -> None:
    once = normalizer.normalize_str(text)
    assert normalizer.normalize_str(once) == once


@ALL
@settings(max_examples=40)
@given(text=st.text(st.one_of(HARD, KNOWN), max_size=8))
def test_forms_of_a_text_are_one(normalizer: Normalizer, text: str) -> None:
    once = normalizer.normalize_str(text)
    for form in ("NFC", "NFD"):
        assert normalizer.normalize_str(unicodedata.normalize(form, text)) == once
    if normalizer in (LOWERED, KEPT) and not GLUED & set(text):
        for form in ("NFKC", "NFKD"):
            assert normalizer.normalize_str(unicodedata.normalize(form, text)) == once


def test_names_are_one_as_words_are() -> None:
    names = ["ja", "caf\u00e9", "cafe\u0301", "Ja", "don’t", "don't", "a\u00a0b", "a b"]
    first = spelling.first_spellings(names)
    assert [first[name] for name in names] == [
        *(
            "ja",
            "caf\u00e9",
            "caf\u00e9",
            "Ja",
            "don’t",
            "don’t",
            "a\u00a0b",
            "a\u00a0b",
        )
    ]
    assert spelling.places("cafe\u0301", names) == [2]  # as it stands
    assert spelling.places("ｃafe\u0301", names) == [1, 2]
    assert spelling.places("tea", [*names, "\ud800"]) == []


@pytest.mark.parametrize(
    ("known", "prompt", "read"),
    [
        ('it\'s "so" - .', "it’s “so” ‑\u00a0…", 'it\'s "so" - ...'),
        ("it’s “so” …", 'it\'s "so" …', "it’s “so” …"),
        (
            'it’s and it\'s “so” "so"',
            "it's it’s “so\"",
            "it's it’s “so\"",
        ),  # both known
        ("a b", "it’s “so” 3½ ﬁ", "it’s “so” 3½ ﬁ"),
        ("re\u0301ussi", "re\u0301us\u00adsi", "r\u00e9ussi"),
    ],
)
def test_characters_stay_where_the_text_has_them(
    known: str, prompt: str, read: str
) -> None:
    normalizer = spelling.characters(known)
    assert normalizer.normalize_str(prompt) == read
    assert normalizer.normalize_str(read) == read


# Runs whose texts, labels and columns are in one form or another.

WORDS = ["le", "film", "était", "très", "l’ami", "réussi", "raté"]


def table(path: Path, form: str, mixed: bool = False) -> str:
    """Sixty labelled texts, all in the form, or only every second one."""
    rng = random.Random(0)
    lines = ["t\u00e9xte,label"]
    for i in range(60):
        label = rng.choice(["f\u00e9e", "b\u00eate"])
        line = f"{' '.join(rng.choices(WORDS, k=4))},{label}"
        lines.append(line if mixed and i % 2 else unicodedata.normalize(form, line))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def table_config(path: str, **fields: object) -> Config:
    return toy_config(
        **{
            "task": "classify_text",
            "data.path": path,
            "data.length": 8,
            "data.text_column": unicodedata.normalize("NFD", "t\u00e9xte"),
            "model.head": "sigmoid",
            **fields,
        }
    )


def test_tables_of_every_form_are_one(tmp_path: Path) -> None:
    one, *others = (
        make_task(table_config(table(tmp_path / "a.csv", form, mixed)))
        for form, mixed in (("NFC", False), ("NFD", False), ("NFD", True))
    )
    for other in others:
        assert other.files["vocabulary.json"] == one.files["vocabulary.json"]
        assert other.files["data.sha256"] == one.files["data.sha256"]
        names = json.loads(other.files["labels.json"])
        assert [unicodedata.normalize("NFC", name) for name in names] == [
            *("b\u00eate", "f\u00e9e")
        ]
    vocabulary = Tokenizer.from_str(one.files["vocabulary.json"])
    composed = "Le film r\u00e9ussi, l’AMI"
    wanted = vocabulary.encode("le film r\u00e9ussi l'ami").ids
    assert len(wanted) == 4
    assert UNKNOWN not in wanted
    for form in FORMS:
        text = unicodedata.normalize(form, composed)
        assert vocabulary.encode(text).ids == wanted


def test_objects_have_their_keys_in_any_form(tmp_path: Path) -> None:
    rows = [{"te\u0301xte": f"a {i}", "label": "x" if i % 2 else "y"} for i in range(9)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    texts, labels = read_labelled(str(path), "t\u00e9xte")
    assert texts[:2] == ["a 0", "a 1"]
    assert labels[:2] == ["y", "x"]
    rows[4]["t\u00e9xte"] = "other"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"line 5: two keys 'ｔe\u0301xte'"):
        read_labelled(str(path), "ｔe\u0301xte")


def test_columns_of_numbers_in_any_form(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("me\u0301dia,b\n1,2\n3,4\n")
    assert read_series(str(path), "m\u00e9dia").tolist() == [1, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "language_model", "data.length": 4},
        {"task": "language_model", "data.length": 4, "data.level": "char"},
        {"task": "next_word"},
    ],
)
def test_texts_of_every_form_are_one(fields: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    tasks = []
    for form in ("NFC", "NFD"):
        path.write_text(unicodedata.normalize(form, " ".join(WORDS * 20)))
        tasks.append(make_task(toy_config(**{"data.path": str(path), **fields})))
    assert tasks[0].files == tasks[1].files
    symbols = json.loads(tasks[0].files["vocabulary.json"])["model"]["vocab"]
    wanted = {"\u00e9", "’"} if fields.get("data.level") else {"r\u00e9ussi"}
    assert wanted < set(symbols)
    assert "e\u0301" not in "".join(symbols)


def test_words_of_every_form_have_one_tag(tmp_path: Path) -> None:
    words = ["l’ami", "10²", "réussi", "x´", "¨", "™", "日本", "a\u200bb"]
    lines = "".join(
        f"{word}\t{'né' if i % 2 else 'où'}\n" for i, word in enumerate(words)
    )
    path, tasks = tmp_path / "a.txt", []
    for form in ("NFC", "NFD"):
        path.write_text("\n".join([unicodedata.normalize(form, lines)] * 5))
        config = toy_config(
            **{"task": "tag", "data.path": str(path), "data.padding": "right"}
        )
        tasks.append(make_task(config))
        assert tasks[-1].examples[0]["lengths"].tolist() == [8] * 4
    assert tasks[0].files["vocabulary.json"] == tasks[1].files["vocabulary.json"]
    assert tasks[0].files["data.sha256"] == tasks[1].files["data.sha256"]
    vocabulary = Tokenizer.from_str(tasks[0].files["vocabulary.json"])
    assert vocabulary.get_vocab_size() == 3 + len(words)
    # Other readers of the vocabulary find as many words.
    assert sorted(vocabulary.encode(" ".join(words)).ids) == [*range(3, 11)]
    path.write_text("a\tb\n\u200b\tc\n")
    with pytest.raises(UserError, match="line 2: the word is empty"):
        make_task(config)


@pytest.mark.parametrize(
    ("level", "shown"),
    [("word", 'it\'s " r\u00e9ussi "'), ("char", "it's “r\u00e9ussi”")],
)
def test_a_prompt_is_read_as_the_text_is(
    level: str, shown: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("it's “r\u00e9ussi” " * 40)
    config = toy_config(**{"data.path": str(tmp_path / "a.txt"), "data.level": level})
    vocabulary = read_streams(config.data).vocabulary
    for prompt in ("it's “r\u00e9ussi”", 'it’s "re\u0301ussi"', "itʼs “réussi”"):
        ids = reviews.encode_texts(vocabulary, [prompt]).ids
        assert decode_stream(vocabulary, ids.tolist(), level) == shown


def test_a_window_is_read_as_the_text_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("it’s “r\u00e9ussi” " * 9)
    config = toy_config(**{"data.path": str(tmp_path / "a.txt"), "data.window": 3})
    files = make_task(config).files
    vocabulary = Tokenizer.from_str(files["vocabulary.json"])
    monkeypatch.setattr(
        continuation, "continue_window", lambda *_, **__: jnp.zeros(0, jnp.int32)
    )
    run = prediction.Run(config, None, {}, vocabulary, (), 1)
    sampling = continuation.Sampling()
    for prompt in ("it’s “r\u00e9ussi”", 'it\'s "re\u0301ussi"'):
        said = continuation.continue_text(run, prompt, sampling)
        assert said == 'it \' s " r\u00e9ussi "'


def stored(folder: Path, normalizer: object) -> Path:
    """A folder with a vocabulary as it was stored before there was a spelling."""
    vocabulary = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    if normalizer is not None:
        vocabulary.normalizer = normalizer
    folder.mkdir()
    (folder / "vocabulary.json").write_text(vocabulary.to_str())
    return folder


@pytest.fixture
def before(tmp_path: Path) -> tuple[Config, Task]:
    """A task as it was made before there was a spelling."""
    config = table_config(table(tmp_path / "a.csv", "NFD", mixed=True), num_steps=2)
    return config, make_task(config, stored(tmp_path / "before", Lowercase()))


def test_a_run_stored_before_goes_on_as_it_was(
    before: tuple[Config, Task], tmp_path: Path
) -> None:
    config, task = before
    words = json.loads(task.files["vocabulary.json"])["model"]["vocab"]
    assert {"r\u00e9ussi", "re\u0301ussi", "l’ami"} <= set(words)
    workdir = tmp_path / "run"
    workdir.mkdir()
    workdirs.store(workdir, config, task.files)
    kept = hashes(workdir)
    # By the new spelling words have other numbers.
    with (
        pytest.raises(UserError, match="reads text by an earlier normalizer: make_t"),
        workdirs.claimed(workdir, config, make_task(config).files),
    ):
        pass
    assert hashes(workdir) == kept
    again = make_task(config, workdir)
    assert again.files == task.files
    with workdirs.claimed(workdir, config, again.files):
        assert hashes(workdir) == kept | {".lock": hashes(workdir)[".lock"]}
    # A damaged one is none: training refuses the folder.
    (workdir / "vocabulary.json").write_text("{")
    assert make_task(config, workdir).files == make_task(config).files
    with (
        pytest.raises(
            UserError, match=r"other data \((data.sha256|vocabulary.json) di"
        ),
        workdirs.claimed(workdir, config, make_task(config, workdir).files),
    ):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("fast_runs")
def test_a_run_stored_before_is_trained_on_and_answers(
    before: tuple[Config, Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, task = before
    workdir = tmp_path / "run"
    training.fit(config, task._replace(demonstrate=None), workdir)
    kept = hashes(workdir)
    config.num_steps = 4
    with pytest.raises(UserError, match="reads text by an earlier normalizer: make_t"):
        training.fit(config, make_task(config), workdir)
    assert hashes(workdir) == kept
    capsys.readouterr()
    again = make_task(config, workdir)._replace(demonstrate=None)
    training.fit(config, again, workdir)
    assert "going on from step 2" in capsys.readouterr().err
    assert hashes(workdir)["vocabulary.json"] == kept["vocabulary.json"]
    words = json.loads(task.files["vocabulary.json"])["model"]["vocab"]
    run = prediction.load(workdir)
    assert run.vocabulary is not None
    ids = reviews.encode_texts(run.vocabulary, ["R\u00e9ussi", "Re\u0301ussi"]).ids
    assert ids.tolist() == [words["r\u00e9ussi"], words["re\u0301ussi"]]


def test_texts_of_every_task_are_read_as_a_stored_run_reads_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("l’ami re\u0301ussi “so” " * 30)
    (tmp_path / "a.conll").write_text("l’ami\ta\nre\u0301ussi\tb\n\n" * 4)
    folder = stored(tmp_path / "before", None)
    for fields, wanted in (
        ({"task": "next_word"}, {"l", "’", "ami", "re\u0301ussi", "“", "so", "”"}),
        (
            {"task": "language_model", "data.length": 2},
            {"l", "’", "ami", "re\u0301ussi", "“", "so", "”"},
        ),
        (
            {"task": "language_model", "data.length": 2, "data.level": "char"},
            set("l’ami re\u0301ussi “so”"),
        ),
        (
            {"task": "tag", "data.path": "a.conll", "data.padding": "right"},
            {"l’ami", "re\u0301ussi"},
        ),
    ):
        fields = {"data.path": "a.txt", **fields}
        fields["data.path"] = str(tmp_path / str(fields["data.path"]))
        task = make_task(toy_config(**fields), folder)
        vocabulary = json.loads(task.files["vocabulary.json"])
        assert vocabulary["normalizer"] is None
        assert set(vocabulary["model"]["vocab"]) - set(reviews.SPECIALS) == wanted


def test_requests_are_read_sign_by_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack may lie in what looks the same."""
    lines = Labelled(["get /a’b ＇ re\u0301", "get /a'b"], ["x", "y"])
    monkeypatch.setattr(web_traffic, "web_traffic", lambda split: lines)
    config = toy_config(**{"data.path": "synthetic:web_traffic"})
    vocabulary = json.loads(read_corpus(config.data).vocabulary.to_str())
    assert vocabulary["normalizer"] == {"type": "Lowercase"}
    assert {"’", "＇", "'", "\u0301"} < set(vocabulary["model"]["vocab"])


def test_cached_reviews_are_made_anew_by_another_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare_tiny_imdb(tmp_path / "tfds")
    data = toy_config(
        **{"data.path": "tfds:imdb_reviews", "data.tfds_dir": str(tmp_path / "tfds")}
    ).data
    before = Tokenizer(WordLevel())
    before.normalizer = Lowercase()
    for read in (read_corpus, read_streams):
        made = [read(data, given).vocabulary.normalizer for given in (before, None)]
        again = [read(data, given).vocabulary.normalizer for given in (before, None)]
        assert [*map(spelling.as_json, made)] == [*map(spelling.as_json, again)]
        assert spelling.as_json(made[0]) == '{"type": "Lowercase"}'
        assert spelling.as_json(made[1]) == spelling.as_json(LOWERED)
    assert len(list((tmp_path / "cache" / "lstm_jax").iterdir())) == 4
