"""DeepChest: dynamic, gradient-free task weighting for multi-label chest radiographs (arXiv 2505.23595), and
all that it takes to judge it.

Names are imported when they are first used, so that `from deepchest_utils import DeepChest` costs little more
than torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "FINDINGS": "datasets.findings",
    "ChestXrays": "datasets",
    "DataError": "datasets",
    "Splits": "datasets",
    "load_dataset": "datasets",
    "DeepChest": "weighting.deepchest",
    "EpochReport": "weighting.base",
    "Method": "weighting.base",
    "METHODS": "weighting",
    "make_method": "weighting",
    "Run": "training",
    "TrainConfig": "config",
    "train": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
