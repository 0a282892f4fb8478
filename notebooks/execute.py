"""Run the notebooks in kernels of their own and store what they print and draw.

python -m notebooks.execute
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NAMES = ("train_on_your_own_csv", "why_do_my_numbers_differ")
SECONDS = 600  # for one cell


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with fresh outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as scratch:
        # This very Python's kernel, whatever the user has registered as "python3". It is reached by
        # sockets in the scratch folder, no port is opened; IPython's history goes there, too.
        manager = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",
            connection_file=f"{scratch}/kernel.json",
        )
        client = NotebookClient(
            notebook,
            manager,
            timeout=SECONDS,
            resources={"metadata": {"path": str(path.parent)}},
            coalesce_streams=True,
            record_timing=False,
        )
        environment = {"IPYTHONDIR": scratch, "PYTHONPATH": str(FOLDER.parent)}
        client.execute(env=os.environ | environment, cleanup_kc=True)
    notebook.metadata.language_info = {"name": "python"}  # without the version
    return notebook


def main() -> None:
    for name in NAMES:
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
