"""Tests of lstm_jax.data.spelling: what a reader takes for the same is the same."""

# ruff: noqa: RUF001

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Normalizer

from lstm_jax.data import spelling

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
@given(text=st.text(st.one_of(HARD, KNOWN), max_size=8))
def test_twice_is_as_once(normalizer: Normalizer, text: str) -> None:
    once = normalizer.normalize_str(text)
    assert normalizer.normalize_str(once) == once


@ALL
@given(text=st.text(st.one_of(HARD, KNOWN), max_size=8))
def test_forms_of_a_text_are_one(normalizer: Normalizer, text: str) -> None:
    once = normalizer.normalize_str(text)
    for form in ("NFC", "NFD"):
        assert normalizer.normalize_str(unicodedata.normalize(form, text)) == once
    if normalizer in (LOWERED, KEPT) and not GLUED & set(text):
        for form in ("NFKC", "NFKD"):
            assert normalizer.normalize_str(unicodedata.normalize(form, text)) == once
