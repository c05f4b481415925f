"""A page of docs/ as a notebook: its Python blocks run in turn, with their outputs.

    pip install nbformat nbclient ipykernel
    python docs/make_notebook.py docs/new_cell.md        # writes docs/new_cell.ipynb

The text becomes Markdown cells, each block of Python a code cell; blocks in other
languages stay text. Nothing is written unless every cell runs.
"""

import re
import sys
from pathlib import Path
from typing import Any

# A block begins and ends at the start of a line.
_PYTHON = re.compile(r"^```python\n(.*?)^```$\n?", re.DOTALL | re.MULTILINE)


def split_page(text: str) -> list[tuple[str, str]]:
    """The parts of a page in their order: ("markdown" or "code", content)."""
    pieces = _PYTHON.split(text)  # text and code in turn
    kinds = ("markdown", "code")
    parts = [(kinds[i % 2], piece.strip("\n")) for i, piece in enumerate(pieces)]
    return [(kind, piece) for kind, piece in parts if piece]


def make_notebook(page: Path) -> Any:
    """The notebook of a page, executed in the page's folder.

    Raises:
      nbclient.exceptions.CellExecutionError: a block fails.
    """
    import nbclient
    import nbformat

    make = {
        "markdown": nbformat.v4.new_markdown_cell,
        "code": nbformat.v4.new_code_cell,
    }
    parts = split_page(page.read_text(encoding="utf-8"))
    cells = [make[kind](content) for kind, content in parts]
    for i, cell in enumerate(cells):
        cell["id"] = f"{page.stem}-{i}"  # random otherwise: each run would be a change
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        resources={"metadata": {"path": str(page.parent)}},
    )
    client.execute()
    nbformat.validate(notebook)
    return notebook


def main() -> None:
    """Writes a notebook beside each page that is named."""
    import nbformat

    if len(sys.argv) < 2:
        sys.exit("error: name a page, such as docs/new_cell.md")
    for page in map(Path, sys.argv[1:]):
        notebook = make_notebook(page)
        nbformat.write(notebook, page.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
