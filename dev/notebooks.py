"""Executes the notebooks and writes what they print into them: ``make notebooks``."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[1] / "notebooks"
SECONDS = 600
"""For one cell, before the notebook counts as hung."""


def execute(path: Path) -> float:
    """Run a notebook in an empty folder and write it with its outputs; return the seconds."""
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = str(Path(folder) / ".ipython")  # nobody's own settings
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=SECONDS,
            startup_timeout=SECONDS,
            extra_arguments=["--IPKernelApp.log_level=40"],  # no warning of its local ports
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        client.execute()
    seconds = time.monotonic() - start
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = joined(cell.outputs)
    notebook.metadata.pop("language_info", None)  # of this machine's Python
    nbformat.write(notebook, path)
    return seconds


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs, with what a stream printed in several pieces as one, in plain text."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if kept and "text" in output and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if "text" in output:
            output.text = plain(output.text)
    return kept


def plain(text: str) -> str:
    """What a terminal shows of a text, without colours and the spaces at the ends of lines."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def main() -> int:
    """Execute the notebooks that are named, or all; say how long each took."""
    os.environ["NO_COLOR"] = "1"
    os.environ["COLUMNS"] = "100"
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # a bar of ipywidgets, not wanted
    names = sys.argv[1:] or sorted(path.name for path in FOLDER.glob("*.ipynb"))
    for name in names:
        try:
            print(f"{name}: {execute(FOLDER / Path(name).name):.0f} s", flush=True)
        except CellExecutionError as error:
            print(f"{name} failed:\n{plain(str(error))}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
