"""The notebook docs/lesson.ipynb: it runs, prints what it shows, and has something to look at.

After a change, run it again and store its outputs:

    python -m tests.project.test_notebook
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest

import fastrnn

NEEDED = "needs nbformat, nbclient and ipykernel, of requirements.txt"
nbformat = pytest.importorskip("nbformat", reason=NEEDED)
nbclient = pytest.importorskip("nbclient", reason=NEEDED)
pytest.importorskip("ipykernel", reason=NEEDED)

NOTEBOOK = Path(__file__).parents[2] / "docs/lesson.ipynb"
LARGEST = 600_000  # bytes, most of them pictures


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def run(notebook: Any, folder: Path, **environment: str) -> Any:
    """A copy, run in `folder` with the package that is imported here; it keeps no times."""
    package = str(Path(fastrnn.__file__).parents[1])
    path = package + os.pathsep + os.environ.get("PYTHONPATH", "")
    made = copy.deepcopy(notebook)
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(made, timeout=600, record_timing=False, resources=resources)
    client.execute(env=os.environ | {"PYTHONPATH": path} | environment)
    return made


@pytest.fixture
def execute(tmp_path: Path) -> Any:
    """Run a copy of a notebook, in a folder of its own and without anyone's own settings."""
    return lambda notebook: run(notebook, tmp_path, IPYTHONDIR=str(tmp_path / "ipython"))


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_picture(output: Any) -> bool:
    return "image/png" in output.get("data", {})


def printed(cell: Any) -> str:
    """What a cell printed, on stdout and stderr, and the value that it ends with."""
    texts = [
        output.text if output.output_type == "stream" else output.get("data", {})["text/plain"]
        for output in cell.outputs
        if not is_picture(output)
    ]
    return "".join(texts)


def differences(shown: Any, made: Any) -> list[tuple[str, str]]:
    pairs = [(printed(a), printed(b)) for a, b in zip(code(shown), code(made), strict=True)]
    return [(a, b) for a, b in pairs if a != b]


def without_a_picture(notebook: Any) -> list[str]:
    """The sections in which no cell draws."""
    title, pictures = "", {}
    for cell in notebook.cells:
        if heading := re.match(r"## (.+)", cell.source) if cell.cell_type == "markdown" else None:
            title = heading[1]
            pictures[title] = 0
        elif title and cell.cell_type == "code":
            pictures[title] += sum(map(is_picture, cell.outputs))
    assert pictures
    return [title for title, count in pictures.items() if not count]


def test_it_prints_what_it_shows(execute: Any) -> None:
    shown = read()
    made = execute(shown)
    assert differences(shown, made) == []
    assert without_a_picture(made) == []


def test_it_is_stored_as_it_was_run() -> None:
    notebook = read()
    assert without_a_picture(notebook) == []
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert not any("execution" in cell.metadata for cell in notebook.cells)  # the times of a run
    assert notebook.metadata.kernelspec.name == "python3"
    assert NOTEBOOK.stat().st_size < LARGEST


def test_its_links_lead_somewhere() -> None:
    text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert [t for t in targets if "://" not in t and not (NOTEBOOK.parent / t).exists()] == []


# What the checks above are worth.


def notebook_of(source: str, shown: str) -> Any:
    cell = nbformat.v4.new_code_cell(source)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=shown)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})


def test_another_text_is_found(execute: Any) -> None:
    notebook = notebook_of("print(round(1 / 3, 2))", "0.34\n")
    made = execute(notebook)
    assert differences(notebook, made) == [("0.34\n", "0.33\n")]
    assert differences(made, execute(made)) == []


def test_another_text_is_found_in_every_cell_that_prints() -> None:
    shown = read()
    printing = [n for n, cell in enumerate(code(shown)) if printed(cell)]
    assert len(printing) > 5
    for n in printing:
        other = copy.deepcopy(shown)
        output = next(o for o in code(other)[n].outputs if not is_picture(o))
        output.text = output.text.replace(output.text.strip()[-1], "?")
        assert len(differences(shown, other)) == 1


def test_an_error_is_found(execute: Any) -> None:
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        execute(notebook_of("1 / 0", ""))


def test_a_section_without_a_picture_is_found() -> None:
    notebook = read()
    for cell in code(notebook):
        cell.outputs = [output for output in cell.outputs if not is_picture(output)]
    assert len(without_a_picture(notebook)) > 5


if __name__ == "__main__":
    nbformat.write(run(read(), NOTEBOOK.parent), NOTEBOOK)
