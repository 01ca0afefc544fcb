"""The notebook runs from top to bottom, and is stored with small outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_runs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    said = [[output.text for output in notebook.cells[place].outputs if "text" in output] for place in (-3, -1)]
    verdicts, exported = map("".join, said)
    assert "anomalous" in verdicts and exported.count("same") == 4


def test_it_is_stored_with_outputs_that_are_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 200_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code[1:])
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert "site-packages" not in NOTEBOOK.read_text(encoding="utf-8")
