"""Where files lie: the repository, the cache of decoded images, the figures of a notebook."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def default_cache_dir() -> Path:
    """`DEEPCHEST_CACHE` if set; else the repository's `data/processed`; else, installed elsewhere,
    `~/.cache/deepchest`."""
    if folder := os.environ.get("DEEPCHEST_CACHE"):
        return Path(folder)
    if (PROJECT / "pyproject.toml").exists():
        return PROJECT / "data" / "processed"
    return Path.home() / ".cache" / "deepchest"


def has_new_parameters() -> bool:
    """Whether papermill gave the notebook that asks other parameters: it writes them into a cell of its own, which
    begins with a comment."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and any(cell.startswith("# Parameters\n") for cell in shell.user_ns.get("In", []))


def figure_folder(dataset: str, smoke: bool) -> Path:
    """Where a notebook's figures go: `figures/` for a full run on the phantom with its own parameters, else
    `runs/figures/<dataset>`, so that no picture of a patient, no rerun and no smoke test lands among the committed ones.
    `DEEPCHEST_FIGURES` overrides it. With parameters given by papermill it prints where figures, decoded images and relative
    folders are: papermill may be started anywhere."""
    rerun = has_new_parameters()
    if given := os.environ.get("DEEPCHEST_FIGURES"):
        folder = Path(given)
    elif dataset == "phantom" and not smoke and not rerun:
        folder = PROJECT / "figures"
    else:
        folder = PROJECT / "runs" / "figures" / (dataset + ("-smoke" if smoke else ""))
    if rerun:
        print(f"figures: {folder.absolute()}\ndecoded images: {default_cache_dir().absolute()}")
        print(f"a relative run_dir, out or data_root: below {Path.cwd()}")
    return folder
