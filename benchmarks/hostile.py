"""Hostile inputs: good files with something wrong, and values that no field expects."""

import copy
import json
import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

# What files are spoilt with: each has meant something to some reader of some format.
PIECES = [
    *(b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff\xfe", b"\x1a"),
    *("\u2028".encode(), "\x85".encode(), "\u00a0".encode(), "\u0661".encode()),
    *(b'"', b'""', b"'", b",", b"\t", b";", b" ", b"\r", b"\n", b"\r\n", b"\n\n\n"),
    *(b"nan", b"inf", b"-inf", b"1e999", b"1e308", b"-1e308", b"1e-320", b"-1", b"-0"),
    *(b"9" * 400, b"9" * 5000, b"1_000", b"0x10", b"1,5", b"1 2", b"NULL", b"true"),
    *(b"<PAD>", b"<START>", b"<UNK>", b"%s", b"{0}", b"\\", b"\\ud800", b"../", b"~"),
    *(
        b"{",
        b"}",
        b"[" * 2000,
        b"]",
        b":",
        b"null",
        b'{"a":',
        b"#",
        b"=1+1",
        b"a" * 3000,
    ),
]
# What fields are given: of every type, and beyond the limits of some machine number.
VALUES: list[Any] = [
    *(None, True, False, "", " ", "a", "\0", "\n", "\ud800", "a\nb", "é", "x" * 2000),
    *(0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e300, 1e39, float("nan"), float("inf")),
    *([], [0], [-1], [1, 2], ["a"], [[]], [None], [2.5], {}, {"a": 1}, {"": {}}),
    *(
        "nan",
        "1e999",
        "../../outside/secret.txt",
        "/dev/null",
        "/",
        "~",
        "tfds:nothing",
    ),
    *("synthetic:nothing", "lstm", "gru(", "%d", "{}", "-1", "(1, 2)", "[]", "true"),
]
WORDS = [
    "a",
    "b",
    "the",
    "The",
    "é",
    "日本",
    "<PAD>",
    "it's",
    "10",
    "-1",
    "",
    "x" * 300,
]
_LONG = 2**20  # characters of a field that is too long for a person


def spoil(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to four things done to them."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = rng.choice(_WAYS)(rng, data)
    return data


def _places(rng: random.Random, data: bytes) -> tuple[int, int]:
    first, second = sorted(rng.randint(0, len(data)) for _ in range(2))
    return first, second


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 20])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    first, second = _places(rng, data)
    return rng.choice([data[:first], data[second:], data[:first] + data[second:]])


def _repeat(rng: random.Random, data: bytes) -> bytes:
    first, second = _places(rng, data)
    return data[:second] + data[first:second] * rng.choice([1, 2, 9]) + data[second:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    first, _ = _places(rng, data)
    return data[:first] + rng.choice(PIECES) * rng.choice([1, 1, 1, 3]) + data[first:]


def _replace(rng: random.Random, data: bytes) -> bytes:
    """One field, or all that are the same."""
    fields = data.replace(b"\n", b",").replace(b"\t", b",").split(b",")
    old = rng.choice(fields)
    if not old:
        return data
    return data.replace(old, rng.choice(PIECES), rng.choice([1, -1]))


def _lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    way = rng.choice(["shuffle", "drop", "double", "one"])
    if way == "shuffle":
        rng.shuffle(lines)
    elif way == "drop":
        del lines[rng.randrange(len(lines))]
    elif way == "double":
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    else:
        lines = lines[: rng.choice([0, 1, 2])]
    return b"\n".join(lines)


def _encode(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    encoding = rng.choice(["utf-16", "utf-32-le", "latin-1", "utf-8-sig", "cp037"])
    return text.encode(encoding, "replace")


def _end_lines(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", b"\0"]))


def _swell(rng: random.Random, data: bytes) -> bytes:
    """Seldom: it takes its time."""
    if rng.random() < 0.9:
        return _insert(rng, data)
    first, _ = _places(rng, data)
    return (
        data[:first]
        + rng.choice([b"x", b"1", b"a ", b'"', b","]) * _LONG
        + data[first:]
    )


def _empty(rng: random.Random, data: bytes) -> bytes:
    del data
    return rng.choice([b"", b"\n", b" ", b"\xef\xbb\xbf", b"word"])


_WAYS: list[Callable[[random.Random, bytes], bytes]] = [
    *(_flip, _cut, _repeat, _insert, _insert, _replace, _replace, _lines),
    *(_encode, _end_lines, _swell, _empty),
]


def spoil_json(rng: random.Random, tree: Any) -> bytes:
    """JSON like the tree with a few nodes replaced, renamed, dropped or added."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.randint(1, 3)):
        nodes = list(_containers(tree))
        if not nodes:
            break
        node = rng.choice(nodes)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys) if keys else None
        way = rng.choice(["set", "set", "set", "drop", "add"])
        if way == "add" and isinstance(node, dict):
            node[str(rng.choice(VALUES))[:50]] = copy.deepcopy(rng.choice(VALUES))
        elif key is not None and way == "drop":
            del node[key]
        elif key is not None:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    written = json.dumps(tree).encode()
    return spoil(rng, written) if rng.random() < 0.2 else written


def _containers(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        yield tree
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(child)


def text(rng: random.Random, words: int = 40) -> str:
    """Words in no order."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.choice([0, 1, 5, words])))


def table(rng: random.Random, delimiter: str = ",") -> str:
    """Rows of texts and labels, most of them as they should be."""
    names = [
        "text",
        "label",
        *rng.choices(["id", "text", "label", ""], k=rng.random() < 0.1),
    ]
    labels = rng.choice([["pos", "neg"]] * 3 + [["1", "0"], ["one"], ["nan", "1"]])
    rows = [names]
    bare = rng.random() < 0.1
    for _ in range(rng.choice([1, 2, 3, 12, 40])):
        values = {"text": text(rng, 8), "label": rng.choice(labels)}
        if bare and rng.random() < 0.3:  # quotes that are text
            at = rng.choice([0, len(values["text"])])
            values["text"] = f'{values["text"][:at]}"{values["text"][at:]}'
        rows.append([values.get(name, "x") for name in names])
        if rng.random() < 0.02:
            rows[-1].append("more")
    quote = rng.random() < 0.5
    return rng.choice(["\n", "\r\n"]).join(
        delimiter.join(f'"{field}"' if quote else field for field in row)
        for row in rows
    )


def json_lines(rng: random.Random) -> bytes:
    """An object a line, most of them as they should be."""
    lines = []
    for _ in range(rng.choice([1, 2, 12])):
        row = {"text": text(rng, 8), "label": rng.choice(["pos", "neg", 0, 1, True])}
        written = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode()
        lines.append(spoil_json(rng, row) if rng.random() < 0.05 else written)
    return b"\n".join(lines)


def numbers(rng: random.Random) -> str:
    """A series of numbers as a CSV file, most of them as they should be."""
    rows = ["day,load"] if rng.random() < 0.95 else []
    scale = rng.choice([1, 1, 1, 1e-310, 1e200, 1e308, 0])
    for i in range(rng.choice([0, 1, 5, 30, 200])):
        value: Any = scale * rng.uniform(-1, 1)
        if rng.random() < 0.005:
            value = rng.choice(VALUES)
        rows.append(f"{i},{value}")
    return "\n".join(rows)


def tagged(rng: random.Random) -> str:
    """Words with labels, most of them as they should be."""
    labels = rng.choice([["A", "B"], ["A"], ["0", "10", "9"]])
    lines = []
    for _ in range(rng.choice([0, 1, 3, 30])):
        word = rng.choice(WORDS) or "x"
        lines.append(f"{word}\t{rng.choice(labels)}")
        if rng.random() < 0.2:
            lines.append("")
    return "\n".join(lines)


def cell(rng: random.Random) -> str:
    """A cell as a config names it, or nearly."""
    names = ["lstm", "gru", "simple_rnn", "rnn", "eval", "__import__('os')", ""]
    keywords = ["activation", "gate_activation", "forget_bias", "reset_after", "dtype"]
    keywords += ["recurrent_init", "kernel_init", "hidden_size", "self", "é", "**a"]
    values = ["tanh", "relu", "1", "-1.5", "1e999", "nan", "True", "None", "bfloat16"]
    values += ["float16", "f(1)", "[1]", "'x'", "9" * 5000, "1j", "0x10", "()", "\n1"]
    chosen = [
        f"{rng.choice(keywords)}={rng.choice(values)}"
        for _ in range(rng.choice([0, 0, 1, 2]))
    ]
    written = f"{rng.choice(names)}({', '.join(chosen)})"
    if rng.random() < 0.3:
        written = rng.choice([written[:-1], written * 2, "(" * 300 + written, names[0]])
    if rng.random() < 0.2:
        written = spoil(rng, written.encode()).decode("utf-8", "surrogateescape")
    return written


def some(
    rng: random.Random, fields: Sequence[str], values: Any = VALUES
) -> dict[str, Any]:
    """One to three of the fields with such values."""
    return {
        field: rng.choice(values)
        for field in rng.sample(list(fields), rng.choice([1, 1, 2, 3]))
    }


# What a folder's name may hold and some program takes for something else.
_NAME_PIECES = [
    *("run", "v2", "[v2]", "[", "]", "[!a]", "[a-z]*", "*", "**", "?", "{a}", "{", "}"),
    *(" ", "  ", "#", "%", "%s", "%20", "$HOME", "&", "|", ";", ":", "'", '"', "`"),
    *("!", "=", "+", ",", "@", "^", "(", ")", "<", ">", "\\", "\\n", "\n", "\t", "-"),
    *("~", ".", "..", ".tmp", "é", "e\u0301", "ü", "日本", "\u200b", "\u202e", "٣"),
    *("checkpoints", ".orbax-checkpoint-tmp", "damaged-1", "0", "gs:", "s3:", "nul"),
    "x" * 200,
]


def folder_name(rng: random.Random) -> str:
    """The name of a folder that the file system allows, or nearly: 255 bytes."""
    size = rng.choice([1, 1, 2, 3, 6])
    name = "".join(rng.choice(_NAME_PIECES) for _ in range(size))
    return name if name.strip(".") else f"{name}a"  # no other folder


# Signs that a reader takes for the one on the left.
_SIGNS = {
    "'": "\u2019\u2018\u02bc\uff07",
    '"': "\u201c\u201d\u201e\uff02",
    "-": "\u2010\u2011\uff0d",
    " ": "\u00a0\u2009\u3000",
}
_LIGATURES = {"ffi": "\ufb03", "fi": "\ufb01", "fl": "\ufb02"}
_UNSEEN = ["\u00ad", "\u200b", "\u2060", "\ufeff", "\u200e"]


def written_text(rng: random.Random) -> str:
    """Words as a book has them, with accents, apostrophes, hyphens and numbers."""
    words = ["réussi", "raté", "naïve", "Ångström", "don't", "l'été", "office", "ﬁn"]
    words += ["flèche", "well-known", "1984", "3", "Việt", "Ελλάδα", "Ёлка", "한국"]
    words += ['"quoted"', "fünf", "señor", "İstanbul", "groß", "œuvre", "2,5"]
    return " ".join(rng.choice(words) for _ in range(rng.choice([1, 3, 12])))


def retyped(rng: random.Random, text: str) -> str:
    """The text as another keyboard, editor or system would have written it."""
    for way in rng.sample(range(6), rng.choice([1, 1, 2, 3])):
        if way == 0:
            form: Any = rng.choice(["NFC", "NFD", "NFKC", "NFKD"])
            text = unicodedata.normalize(form, text)
        elif way == 1:
            for sign, others in _SIGNS.items():
                text = text.replace(sign, rng.choice(others))
        elif way == 2:
            first = rng.choice([0xFF10, 0x660, 0x6F0, 0x966, 0xE50])
            text = text.translate({ord("0") + i: first + i for i in range(10)})
        elif way == 3:
            for letters, ligature in _LIGATURES.items():
                text = text.replace(letters, ligature)
        elif way == 4:
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(_UNSEEN) + text[at:]
        else:
            text = rng.choice(["\ufeff", "\u200e", ""]) + text
    return text


def quoted_rows(rng: random.Random) -> tuple[list[tuple[str, str]], str]:
    """Rows of texts with quotes where people write them, and such a file between tabs.

    The rows are what a reader of the file takes for them: no field holds a tab or a
    newline, and no field is in quotes as a whole.
    """
    pieces = ['"', "'", '""', "fine", "start", "bad", "a b", "5", '"Fine" said he', ","]
    rows = []
    for _ in range(rng.choice([2, 3, 12])):
        text = " ".join(rng.choice(pieces) for _ in range(rng.choice([1, 2, 5])))
        if text[:1] == text[-1:] == '"':
            text += " end"
        rows.append((text, rng.choice(["good", "bad"])))
    end = rng.choice(["\n", "\r\n"])
    return rows, end.join(["text\tlabel", *("\t".join(row) for row in rows)])


# What a notebook, a container or a job sets, each with some of its values. None: unset.
_ENVIRONMENT: dict[str, list[str | None]] = {
    "MPLBACKEND": ["module://matplotlib_inline.backend_inline", "TkAgg", "nothing"],
    "MPLCONFIGDIR": ["/proc/nothing", ""],
    "HOME": [None, "/nonexistent", ""],
    "XDG_CACHE_HOME": ["/proc/nothing", "", "relative"],
    "TMPDIR": ["/nonexistent"],
    "LANG": ["C", "nothing", None],
    "LC_ALL": ["C", "POSIX", "nothing"],
    "PYTHONIOENCODING": ["ascii", "latin-1"],
    "PYTHONUTF8": ["0", "1"],
    "PYTHONOPTIMIZE": ["1", "2"],
    "PYTHONHASHSEED": ["0", "1"],
    "PYTHONUNBUFFERED": ["1"],
    "PYTHONDONTWRITEBYTECODE": ["1"],
    "COLUMNS": ["0", "1", "-1", "none"],
    "TERM": ["dumb", "", None],
    "NO_COLOR": ["1"],
    "OMP_NUM_THREADS": ["1", "0", "64"],
    "JAX_ENABLE_X64": ["1", "0"],
    "JAX_PLATFORMS": ["cpu", "", "cuda", "tpu", "nothing"],
    "JAX_DEBUG_NANS": ["1"],
    "JAX_LOG_COMPILES": ["1"],
    "JAX_NUM_CPU_DEVICES": ["1", "2", "4"],
    "JAX_COMPILATION_CACHE_DIR": ["/proc/nothing", ""],
    "CUDA_VISIBLE_DEVICES": ["", "-1", "0"],
    "TF_CPP_MIN_LOG_LEVEL": ["0", "3"],
    "SLURM_JOB_ID": ["17"],
    "SLURM_NTASKS": ["1", "4"],
    "SLURM_PROCID": ["0"],
    "OMPI_COMM_WORLD_SIZE": ["1"],
    "PWD": ["/nonexistent", None],
    "USER": [None],
}


def environment(rng: random.Random) -> dict[str, str | None]:
    """One to four variables of an environment; None: it is not set."""
    names = rng.sample(sorted(_ENVIRONMENT), rng.choice([1, 1, 2, 4]))
    return {name: rng.choice(_ENVIRONMENT[name]) for name in names}
