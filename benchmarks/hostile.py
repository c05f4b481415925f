"""Hostile inputs: good files with something wrong, and values that no field expects."""

import copy
import json
import random
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
