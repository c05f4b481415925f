"""Tests of the notebooks in docs/: each is its page, and ran without an error."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS

split_page = runpy.run_path(str(DOCS / "make_notebook.py"))["split_page"]


def check_notebook(page: Path) -> None:
    """Fails where a page's notebook has other cells, or outputs that went wrong."""
    notebook = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = notebook["cells"]
    # Jupyter keeps a text as lines.
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    assert found == split_page(page.read_text(encoding="utf-8"))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"


@pytest.mark.parametrize("name", sorted(path.stem for path in DOCS.glob("*.ipynb")))
def test_notebooks_are_their_pages(name: str) -> None:
    check_notebook(DOCS / f"{name}.md")


def test_python_blocks_are_code() -> None:
    page = (
        "# T\n\na `b`\n\n```python\nx = '''\n  ``` '''\n\ny\n```\n```python\nz\n```\n"
        "\n```bash\nls\n```\nend"
    )
    assert split_page(page) == [
        ("markdown", "# T\n\na `b`"),
        ("code", "x = '''\n  ``` '''\n\ny"),
        ("code", "z"),
        ("markdown", "```bash\nls\n```\nend"),
    ]


CELL = {"cell_type": "code", "execution_count": 1, "source": ["x = 1\n", "x"]}
GOOD = {**CELL, "outputs": [{"output_type": "execute_result"}]}


@pytest.mark.parametrize(
    ("cell", "right"),
    [
        (GOOD, True),
        ({**GOOD, "source": ["x = 1\n", "y"]}, False),
        ({**GOOD, "execution_count": None}, False),
        ({**GOOD, "cell_type": "markdown"}, False),
        ({**GOOD, "outputs": [{"output_type": "error"}]}, False),
        ({**GOOD, "outputs": [{"output_type": "stream", "name": "stderr"}]}, False),
    ],
)
def test_what_is_wrong_is_found(cell: Any, right: bool, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\nx\n```\n")
    page.with_suffix(".ipynb").write_text(json.dumps({"cells": [cell]}))
    if right:
        check_notebook(page)
        return
    with pytest.raises(AssertionError):
        check_notebook(page)
