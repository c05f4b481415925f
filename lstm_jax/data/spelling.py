"""One spelling for what a reader takes for the same word or digit.

Keyboards, editors and systems write one word in several ways: `é` as one character or
as `e` and an accent, `don't` with either apostrophe, `３` and `٣` for 3.
"""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, NFKC, Lowercase, Normalizer, Replace

# Soft hyphen, joiners of words and of accents, marks of direction, the byte order mark,
# and what chooses between two pictures of one sign. Not the joiners of letters (U+200C,
# U+200D): they change how a word looks.
_INVISIBLE = [
    *map(chr, (0xAD, 0x34F, 0x61C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF)),
    *map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xFE00, 0xFE10)]),
]
# The last two of each are what Windows writes, read as Latin-1.
_APOSTROPHES = "\u2018\u2019\u201a\u201b\u02bb\u02bc\x91\x92"
_QUOTES = "\u201c\u201d\u201e\u201f\x93\x94"
_HYPHENS = "\u2010\u2212"  # NFKC makes the first of U+2011
# NFKC makes digits of them: 10² would become 102. And letters.
_AFTER_DIGITS = "¹²³⁰⁴⁵⁶⁷⁸⁹¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅟↉"
_AFTER_LETTERS = "™℠"
# The zero of each script; the other nine digits follow it. NFKC knows those left out.
_ZEROS = [
    *(0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6),
    *(0xD66, 0xDE6, 0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946),
    *(0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900),
    *(0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136),
    *(0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950),
    *(0x11C50, 0x11D50, 0x11DA0, 0x11F50, 0x16A60, 0x16AC0, 0x16B50, 0x1E140, 0x1E2F0),
    *(0x1E4F0, 0x1E950, 0x1FBF0),
]


def words(lowercase: bool) -> Normalizer:
    """Return the normalizer of text that is split into words.

    >>> print(words(lowercase=True).normalize_str("Don’t “ﬁx” ３ Ｃafés"))
    don't "fix" 3 cafés

    Text in NFC and in NFD becomes the same; so does text in NFKC or NFKD, but for what
    those forms glue together, such as 10² to 102.
    """
    steps = [
        # First: they may stand between a letter and its accent.
        _any_of(_INVISIBLE, ""),
        Replace(
            Regex(
                rf"(?<=\p{{Nd}})(?={'|'.join(_AFTER_DIGITS)})|"
                rf"(?<=[\p{{L}}\p{{M}}])(?={'|'.join(_AFTER_LETTERS)})"
            ),
            " ",
        ),
        NFKC(),
        _any_of(_APOSTROPHES, "'"),
        # An acute accent by itself is a space and a mark now.
        Replace(Regex(r"(?<=[\p{L}\p{M}])(?:`|\u2032| \u0301)(?=\p{L})"), "'"),
        Replace(Regex(r" \p{Mn}+"), " "),  # ¨ and the like
        _any_of(_QUOTES, '"'),
        _any_of(_HYPHENS, "-"),
        *(
            _any_of([chr(zero + digit) for zero in _ZEROS], str(digit))
            for digit in range(10)
        ),
    ]
    if lowercase:
        # Lower case of İ is i and a dot, and of a capital sigma never the final one.
        steps += [Lowercase(), Replace(Regex("i\u0307+"), "i"), Replace("ς", "\u03c3")]
    # Last: letters and accents may have come together, and there are letters with an
    # accent that exist in lower case alone.
    return normalizers.Sequence([*steps, NFC()])


def tokens() -> Normalizer:
    """Return the normalizer of words that are told apart already, case kept.

    White space alone separates them: what `words` parts stays one.

    >>> tokens().normalize_str("10² men").split()
    ['10_2', 'men']
    """
    apart = Replace(Regex(r"\s+"), "\n")
    return normalizers.Sequence([apart, words(lowercase=False), Replace(" ", "_")])


def characters(known: str = "") -> Normalizer:
    """Return the normalizer of text that is split into characters.

    Its signs stay, so that what is generated has them. Quotes, hyphens and spaces that
    the text lacks are read as those that it has.

    >>> characters("it's").normalize_str("it’s"), characters("it’s").normalize_str("'")
    ("it's", '’')

    Args:
      known: the text that the vocabulary is made of.
    """
    has = set(known)
    steps = [_any_of(_INVISIBLE, ""), NFC()]
    for plain, others in (
        ("'", f"{_APOSTROPHES}\uff07\u2032\u00b4"),
        ('"', f"{_QUOTES}\uff02"),
        ("-", f"{_HYPHENS}\u2011"),
        (" ", "\u00a0\u2009\u202f"),
        ("...", "…"),
    ):
        lacking = [sign for sign in others if sign not in has]
        if lacking and has.issuperset(plain):
            steps.append(_any_of(lacking, plain))
    if "'" not in has and "\u2019" in has:
        steps.append(Replace("'", "\u2019"))
    if '"' not in has and has.issuperset("“”"):
        steps += [Replace(Regex(r'(?<!\S)"'), "“"), Replace('"', "”")]
    return normalizers.Sequence(steps)


def stored_or(stored: Tokenizer | None, normalizer: Normalizer) -> Normalizer | None:
    """Return the normalizer of a stored vocabulary; None: there is none stored."""
    return normalizer if stored is None else stored.normalizer


def as_json(normalizer: Normalizer | None) -> str:
    """Return the normalizer as a vocabulary's file has it."""
    vocabulary = Tokenizer(WordLevel())
    if normalizer is not None:
        vocabulary.normalizer = normalizer
    return json.dumps(json.loads(vocabulary.to_str())["normalizer"])


def first_spellings(names: Iterable[str]) -> dict[str, str]:
    """Return of each name the first that a reader takes for the same.

    >>> first_spellings(["ﬁne", "poor", "fine"])
    {'ﬁne': 'ﬁne', 'poor': 'poor', 'fine': 'ﬁne'}
    """
    first: dict[str, str] = {}
    return {name: first.setdefault(_same(name), name) for name in dict.fromkeys(names)}


def canonical(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as a reader takes them; as they are where two are the same to one.

    >>> canonical(["ﬁne", "poor"]), canonical(["ﬁne", "fine"])
    (('fine', 'poor'), ('ﬁne', 'fine'))
    """
    same = tuple(map(_same, names))
    return same if len(set(same)) == len(set(names)) else tuple(names)


def places(name: str, names: Sequence[str]) -> list[int]:
    """Return where a name stands, or else what a reader takes for the same."""
    exact = [i for i, other in enumerate(names) if other == name]
    same = _same(name)
    return exact or [i for i, other in enumerate(names) if _same(other) == same]


def is_visible(text: str) -> bool:
    """Tell whether there is more than spaces and characters that nobody sees."""
    return bool(text.translate(_NOTHING).strip())


def _any_of(characters: str | list[str], replacement: str) -> Normalizer:
    # Alternatives, as the library tests a class of characters at every place of a text.
    return Replace(Regex("|".join(characters)), replacement)


_NOTHING = dict.fromkeys(map(ord, _INVISIBLE))
_WORDS = words(lowercase=False)


def _same(name: str) -> str:
    # A key in JSON may hold half a surrogate pair, which the library refuses.
    name = name.encode(errors="backslashreplace").decode()
    return _WORDS.normalize_str(name).strip()
