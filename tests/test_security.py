"""What SECURITY.md promises of the sources: nothing that a file holds is executed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    *(ROOT / f"{name}.py" for name in ("train", "predict", "lab", "flow")),
    *sorted((ROOT / "lstm_jax").rglob("*.py")),
    *sorted((ROOT / "configs").rglob("*.py")),
]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# The library starts no other program either.
MODULES |= {"subprocess", "ctypes", "code", "runpy"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
METHODS = {"os.system", "os.popen", "os.execv", "importlib.import_module"}
METHODS |= {"os.posix_spawn", "os.spawnv", "os.fork"}
METHODS |= {"yaml.load", "yaml.unsafe_load", "jnp.load", "jax.numpy.load"}


def dangers(source: str) -> Iterator[str]:
    """What in a module could execute what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in BUILT_IN | METHODS or called.endswith(".exec_module"):
            yield called
        unpickling = [
            keyword
            for keyword in node.keywords
            if keyword.arg == "allow_pickle"
            and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            )
        ]
        if unpickling or (
            called.split(".")[-1] in ("load", "write_array")
            and called.startswith("np.")
            and "allow_pickle" not in {keyword.arg for keyword in node.keywords}
        ):
            yield called


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_read_is_executed(path: Path) -> None:
    known = {
        "processes.py": ["os.posix_spawn"],  # what copies stderr, see SECURITY.md
        "own_cell.py": ["spec.loader.exec_module"],  # the file that lab.py is given
        "peer.py": ["importlib.import_module"],  # libraries, by names in the source
    }
    assert list(dangers(path.read_text())) == known.get(path.name, [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import os, subprocess",
        "eval('1')",
        "exec(text)",
        "importlib.import_module(name)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.write_array(file, array, allow_pickle=flag)",
        "os.system(command)",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert len(list(dangers(source))) == 1


def test_what_could_not_is_not() -> None:
    source = "model.eval(); json.load(file); np.load(path, allow_pickle=False)"
    assert list(dangers(source)) == []
