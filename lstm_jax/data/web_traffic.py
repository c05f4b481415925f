r"""Synthetic HTTP request lines, benign or an attack, made by the rules of this file.

No such line was ever sent, and a score on them says nothing about detecting real
attacks. They are a task in which the order of tokens decides, with an exact answer: a
request is an attack if its path or one of its values closes what it did not open, be
it a quote, a bracket, or a directory (`..` above where the path began). A quote between
two letters or digits, or after a backslash, is a letter: O'Brien, 6\'.

What follows the break-out makes the attack's family: SQL, a script, a shell command.
It gives nothing away, for every template of an attack has a harmless twin of the same
tokens in another order: `ann' or 'a'='a` and `'ann' or 'a=a'`, `a/../../b/c` and
`a/b/../../c`. 60 % of the benign lines hold such a twin. The others hold ordinary
values only; those stand in all lines too, and hold quotes, brackets and SQL's words.

Method, path, protocol, the place of the value among the others, its %-escapes and the
length of the line in tokens are drawn in the same way for all lines. The split "test"
has families of its own: they and their twins never occur in "train". Its benign lines
hold twins of both, and its ordinary values are partly of shapes unseen in "train".

Among the families of "train" are a scanner's probes, break-outs followed by any sign:
without them an LSTM of size 128 reads 81 % of the test lines right, with them 98 %. The
training templates were widened until it did, so its score is the task's, no forecast.
"""

import random
import re
from typing import NamedTuple

from lstm_jax.errors import UserError

# What is a token, in the line in lower case: a %-escape, a run of letters or of digits,
# any other sign by itself. Spaces only separate.
TOKENS = r"%[0-9a-f]{2}|[a-z_]+|[0-9]+|[^\sa-z0-9_]"
VOCABULARY_SIZE = 1024  # of the task, with padding, start and unknown
LENGTHS = (42, 56)  # tokens to fill a line up to

SIZES = {"train": 8000, "test": 2000}
TWINS = 0.6  # share of the benign lines with one

# A template's capitals stand for something random: W word, N number, X hexadecimal, F
# field, H host, S a name with an apostrophe, P a sign, C shell command, A script call,
# E event, D a path that stays below its beginning, U one that does not, Q the value's
# quote. Family, attack, harmless twin:
_TRAIN = r"""
    sql tautology        WQ or QWQ=QW                  QWQ or QW=WQ
    sql tautology        WQ or N=N or QW               QW or N=N or WQ
    sql tautology        NQ and F=QWQ -- QW            QN and F=WQ -- QWQ
    sql comment          WQ -- W QW                    QW -- W WQ
    sql comment          WQ; -- QW                     QW; -- WQ
    sql union            WQ union select F from W; QW  QW union select F from W; WQ
    sql union            NQ union select F,N -- F=QW   QN union select F,N -- F=WQ
    sql stacked          WQ; drop table W; select QW   QW; drop table W; select WQ
    sql stacked          WQ; update W set F=QW         QW; update W set F=WQ
    sql bracket          N) or (F=N                    (N or F=N)
    sql bracket          N)) or ((F=N                  ((N or F=N))
    sql bracket          W) and F in (N,N              (W and F in N,N)
    script attribute     WQ E=QA                       QW E=AQ
    script attribute     WQ F=QW E=A                   QW F=WQ E=A
    script tag           WQ><script>A</script><b id=QW   QW><script>A</script><b id=WQ
    script tag           WQ><img src=x E=A id=QW       QW><img src=x E=A id=WQ
    command              WQ;C;echo QW                  QW;C;echo WQ
    command              WQ | C | tee QW               QW | C | tee WQ
    json                 W},{F:N                       {W,F:N}
    json                 W]},{F:[N                     {[W],F:N}
    json                 WQ,QFQ:QW                     QWQ,QF:WQ
    quote probe          WQPQW                         QWPWQ
    quote probe          WQP W QW                      QWP W WQ
    quote probe          WQPW W PQW                    QWPW W PWQ
    quote probe          WQPF(W)PQW                    QWPF(W)PWQ
    bracket probe        W)PW(W                        (WPW W)
    bracket probe        W)P W P(W                     (WP W P W)
    bracket probe        W)(W                          (W W)
    bracket probe        W]PW[W                        [WPW W]
    bracket probe        W][W                          [W W]
    bracket probe        W}PW{W                        {WPW W}
    bracket probe        W}P W P{W                     {WP W P W}
    path in a value      U                             D
    path in a value      U.W                           D.W
    path of the request  /U                            /D
    path of the request  /U.W                          /D.W
"""
_TEST = r"""
    xpath                WQ or count(//F)=N or F=QW    QW or count(//F)=N or F=WQ
    xpath                WQ] | //W[F=QW                [QW | //WQ F=W]
    sql blind            WQ and sleep(N) and QW        QW and sleep(N) and WQ
    sql blind            N) and if(F,sleep(N),N) and (N   (N and if(F,sleep(N),N) and N)
    script string        WQ;A;var F=QW                 QW;A;var F=WQ
    script string        WQ-A-QW                       QW-A-WQ
    command chain        WQ %26%26 C %26%26 echo QW    QW %26%26 C %26%26 echo WQ
    command chain        WQ$(C)QW                      QW$(C)WQ
    ldap                 W)(uid=*)(|(cn=W)             (W(uid=*)|(cn=W))
    ldap                 W*)(|(F=W)                    (W*|(F=W))
    template             W}}N*N{{W                     {{W N*N W}}
    template             W}#{A}{W                      {W #{A} W}
    lookup               W}${jndi:ldap://H/W           ${W jndi:ldap://H/W}
    header               WQ%0d%0aset-cookie: F=QW      QW%0d%0aset-cookie: F=WQ
    header               WQ%0d%0alocation: //H/QW      QW%0d%0alocation: //H/WQ
    file inclusion       U%00.W                        D%00.W
    file inclusion       U/W%3fF=N                     D/W%3fF=N
"""
# Values of all lines; "test" has the second as well.
_ORDINARY = r"""
    W  W  N  X  W W  W W  W W W  S  W S  S W  N.N  W-N  D  W's W  N\' N\" W  QS WQ
    QW WQ  QWQ or QWQ  QWQ, QWQ  (W or W)  W (W)  (W (W) W)  (W)(W)  [N,N]  F[N]  A
    QF(N) WQ  (QWQ,QW WQ)  F(F(N),N)  [QWQ,N]  [QW WQ]  [QWQ W]  {QFQ:QWQ}  ${F}  WPW
    {QFQ:N,QFQ:[N,N]}  W P W  WP W  QWPWQ  QW P WQ  N%25  F<N  F>N or F=N  W, W; W
    select W from W  union of W; drop W  W > W?  $N.N  #W W  https://H/W/W?F=N  W@H
    20N-N-N  W%0d%0aW W  W %26 W  <b>W</b>  W | W  W -- W  N*N  H:N
    QWQ;QWQ  (F or (F and F))  {W}{W}
"""
_UNSEEN = r"""
    W: QW WQ (N)  [QWQ,QWQ]  (F)[N]  {F}  Q(W) S WQ  D?F=N  F>N and F<N  W [W]  #{F}
    W (QWQ)  QWQ/QWQ
"""
_WORDS = """
    red blue green white black small large new old best cheap fresh garden kitchen house
    river lake north south summer winter shoes shirt jacket boots table chair lamp desk
    bread butter cheese apple orange coffee tea sugar bottle cup plate spoon knife fork
    music guitar piano drum song dance film book novel poem author paper pencil picture
    travel train bus car bike ship hotel flight ticket map city museum park bridge tower
    dog cats bird horse tree flower rain snow wind sun moon phone screen camera keyboard
    price order cart sale gift bank bill report team player goal match score run swim
    doctor health sleep school class teacher lesson help about contact news blog search
    login profile settings images static docs api public private shared uploads media
    select union where insert update drop delete from and or not null like having count
    script alert document cookie window location header redirect template include query
    admin root user guest passwd shadow hosts config backup secret token session key log
    echo cat curl ping whoami bash php java python ldap uid cn jndi var set if tee etc
"""
_FIELDS = """
    id q page sort name title user pass email city lang ref next url file path view item
    category color size price min max from to date note comment text body tag filter key
"""
_NAMES = (
    "O'Brien O'Neil D'Angelo L'Oreal O'Hara don't it's can't won't rock'n'roll D'Arcy"
)
PIECES = {
    "P": [*";,-|*/<>=:#~!^.@$", "%26", "||", "--", *["%0d%0a"] * 3],
    "E": ["onload", "onerror", "onclick", "onfocus", "onmouseover"],
    "A": ["alert(N)", "alert(F)", "eval(F)", "fetch(F)", "prompt(N)"],
    "C": ["id", "cat /etc/W", "ls -l W", "curl H/W", "rm -f W", "ping -c N H"],
    "H": ["W.com", "W.org", "www.W.net", "10.0.N.N", "localhost"],
    "W": _WORDS.split(),
    "F": _FIELDS.split(),
    "S": _NAMES.split(),
}
METHODS = ["GET"] * 6 + ["POST"] * 5 + ["PUT", "DELETE"]
AFFIXES = ["", "", "W", "S", "(W)", "QWQ"]  # before and after an attack or a twin
_ESCAPED = set("'\"()[]{}<>;:,/|$#*@\\=?")


class Requests(NamedTuple):
    """Lines, "benign" or "attack" for each, and the family it was made from.

    The family of a benign line is "ordinary", or "like" that of its twin.
    """

    texts: list[str]
    labels: list[str]
    families: list[str]


def _families(table: str) -> dict[str, list[tuple[str, str]]]:
    families: dict[str, list[tuple[str, str]]] = {}
    for row in table.strip().split("\n"):
        family, attack, twin = re.split(r" {2,}", row.strip())
        families.setdefault(family, []).append((attack, twin))
    return families


def _values(table: str) -> list[str]:
    return re.split(r"\s{2,}", table.strip())


FAMILIES = {"train": _families(_TRAIN), "test": _families(_TEST)}
ORDINARY = {"train": _values(_ORDINARY), "test": _values(_ORDINARY + _UNSEEN)}


def split_request(text: str) -> list[str]:
    """The tokens of a line, in lower case.

    >>> split_request("GET /a/..?q=O%27Neil+42")
    ['get', '/', 'a', '/', '.', '.', '?', 'q', '=', 'o', '%27', 'neil', '+', '42']
    """
    return re.findall(TOKENS, text.lower())


def web_traffic(split: str, seed: int = 0, size: int | None = None) -> Requests:
    """Lines of a split, half of them attacks, in random order.

    Args:
      split: "train" or "test".
      seed: another seed draws other lines of the same families.
      size: lines; None: 8,000 of "train", 2,000 of "test".

    Raises:
      UserError: an unknown split, or a negative size.
    """
    if split not in SIZES:
        raise UserError(f"unknown split {split!r}: choose {' or '.join(SIZES)}")
    size = SIZES[split] if size is None else size
    if size < 0:
        raise UserError(f"size={size} must be at least 0")
    rng = random.Random(f"{split} {seed}")
    rows = [_request(rng, split, attack=i % 2 == 0) for i in range(size)]
    rng.shuffle(rows)
    return Requests(*([row[i] for row in rows] for i in range(3)))


def _request(rng: random.Random, split: str, attack: bool) -> tuple[str, str, str]:
    """(line, label, family)."""
    path, value, family = None, None, "ordinary"
    if attack or rng.random() < TWINS:
        among = FAMILIES[split]
        if not attack and split == "test":
            among = FAMILIES["train"] | among
        family = rng.choice(list(among))
        template = rng.choice(among[family])[0 if attack else 1]
        if template.startswith("/"):
            path = "/" + _escape(rng, _fill(rng, template[1:]))
        elif "U" in template or "D" in template:
            value = _value(rng, template)
        else:
            affixed = [rng.choice(AFFIXES), template, rng.choice(AFFIXES)]
            value = _value(rng, " ".join(filter(None, affixed)))
        family = family if attack else f"like {family}"
    label = "attack" if attack else "benign"
    return _line(rng, path, value, ORDINARY[split]), label, family


def _line(
    rng: random.Random, path: str | None, value: str | None, shapes: list[str]
) -> str:
    """A line with the path and the value, filled up with ordinary ones."""
    method = rng.choice(METHODS)
    protocol = " HTTP/1.1" if method != "GET" or rng.random() < 0.7 else ""
    if path is None:
        path = _fill(rng, rng.choice(["/W", "/W/W", "/W/W/W", "/W/W.W", "/W/N"]))
    parameters = [f"{rng.choice(PIECES['F'])}={value}"] if value is not None else []
    wanted = rng.randint(*LENGTHS)
    length = len(split_request(f"{method}{path}?{protocol}{''.join(parameters)}"))
    while True:
        shape = rng.choice(shapes)
        parameter = f"{rng.choice(PIECES['F'])}={_value(rng, shape)}"
        length += len(split_request(parameter)) + 1  # its separator
        if length > wanted:
            break
        parameters.append(parameter)
    rng.shuffle(parameters)
    split = 0 if method == "GET" else rng.randint(0, len(parameters))
    body, query = "&".join(parameters[:split]), "&".join(parameters[split:])
    return f"{method} {path}{'?' if query else ''}{query}{protocol} {body}".rstrip()


def _value(rng: random.Random, template: str) -> str:
    filled = _fill(rng, template.replace("Q", rng.choice("'\"")))
    return _escape(rng, filled).replace(" ", rng.choice(["+", "%20"]))


def _fill(rng: random.Random, template: str) -> str:
    """The template with something random for each of its capitals."""
    return re.sub("[A-Z]", lambda match: _piece(rng, match.group()), template)


def _piece(rng: random.Random, letter: str) -> str:
    if letter == "N":
        return str(rng.randrange(10 if rng.random() < 0.6 else 1000))
    if letter == "X":
        return f"{rng.randrange(16**6):06x}"
    if letter in "UD":
        return _walk(rng, climbs=letter == "U")
    piece = rng.choice(PIECES[letter])
    return _fill(rng, piece) if letter in "ACH" else piece


def _walk(rng: random.Random, climbs: bool) -> str:
    """A path of names and `..` that leaves its beginning upwards, or does not."""
    names = rng.randint(1, 3)
    ups = rng.randint(1, names)
    steps = [rng.choice(PIECES["W"]) for _ in range(names)] + [".."] * ups
    while True:
        rng.shuffle(steps)
        depth, lowest = 0, 0
        for step in steps:
            depth += -1 if step == ".." else 1
            lowest = min(lowest, depth)
        if (lowest < 0) == climbs:
            return "/".join([*steps, rng.choice(PIECES["W"])])


def _escape(rng: random.Random, text: str) -> str:
    """The text with none, some or all of its signs as %-escapes."""
    share = rng.choice([0.0, 0.0, 0.5, 1.0])
    return "".join(
        f"%{ord(sign):02x}" if sign in _ESCAPED and rng.random() < share else sign
        for sign in text
    )
