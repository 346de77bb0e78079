"""Where files lie: below the repository in a checkout, below the working directory or the user's cache elsewhere."""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def base_dir() -> Path:
    """The repository, or the working directory where there is no checkout: nothing is written into site-packages."""
    in_checkout = (PROJECT / "pyproject.toml").exists() and (PROJECT / "notebooks").is_dir()
    return PROJECT if in_checkout else Path.cwd()


def runs_dir() -> Path:
    """Folder of runs and of all that can be made again: `DEEPCHEST_RUNS`, else `runs`."""
    return Path(os.environ.get("DEEPCHEST_RUNS") or base_dir() / "runs")


def default_cache_dir() -> Path:
    """Folder of decoded images: `DEEPCHEST_CACHE`, else the checkout's `data/processed`, else `~/.cache/deepchest`."""
    if folder := os.environ.get("DEEPCHEST_CACHE"):
        return Path(folder)
    return PROJECT / "data" / "processed" if base_dir() == PROJECT else Path.home() / ".cache" / "deepchest"


def raw_dir() -> Path:
    """Folder of downloads: the checkout's `data/raw`, else `raw` in the cache."""
    return PROJECT / "data" / "raw" if base_dir() == PROJECT else default_cache_dir() / "raw"


def is_interactive() -> bool:
    """Whether a person runs this cell, in JupyterLab, VS Code, Colab or another front end.

    All of these can be asked for input. papermill, nbconvert and nbclient say with each cell that they cannot, whatever
    environment they have inherited.
    """
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


def _has_injected_parameters() -> bool:
    """Whether papermill gave this notebook other parameters, in a cell of its own that begins with a comment."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and any(cell.startswith("# Parameters\n") for cell in shell.user_ns.get("In", []))


def figure_folder(dataset: str, smoke: bool) -> Path:
    """Folder of a notebook's figures. `DEEPCHEST_FIGURES` overrides it.

    `figures/` takes those of a full headless run on the phantom with the notebook's own parameters, `runs/figures/` all
    others: no picture of a patient, no rerun, no smoke test and nothing that a person tries lands among the committed
    ones. A rerun of papermill prints where they go.
    """
    rerun = _has_injected_parameters()
    if given := os.environ.get("DEEPCHEST_FIGURES"):
        folder = Path(given)
    elif dataset == "phantom" and not smoke and not rerun and not is_interactive():
        folder = base_dir() / "figures"
    else:
        folder = runs_dir() / "figures" / (dataset + ("-smoke" if smoke else ""))
    if rerun:
        print(f"figures: {folder.absolute()}\ndecoded images: {default_cache_dir().absolute()}")
        print(f"a relative run_dir, out or data_root: below {Path.cwd()}")
    return folder
