"""One image file of the user's own: what a trained network makes of it."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deepchest_utils.config import TrainConfig
from deepchest_utils.files import FileError, one_line
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.sharing import build_network
from deepchest_utils.models.trunks import MLP, Weights
from deepchest_utils.results.checkpoint import read_checkpoint
from deepchest_utils.results.metrics import CALIBRATION, calibrate, read_calibration
from deepchest_utils.training.setup import resolve_device

NOTE = "Research and teaching only, not for clinical use."


@dataclass(frozen=True)
class Trained:
    """The network of a run's best epoch, in eval mode."""

    net: nn.Module
    findings: tuple[str, ...]  # K names
    image_size: int  # px
    dataset: str  # name of the data set that it was trained on
    calibration: np.ndarray | None  # (K, 2), slope and offset, if the run has a calibration

    @property
    def about(self) -> str:
        """The worth of its probabilities, for the line above them."""
        calibrated = ", calibrated on its validation images"
        if self.calibration is None:
            calibrated = f", not calibrated: the run has no {CALIBRATION}"
        if self.dataset == "phantom":
            meaning = ": on any other image, as a radiograph, these numbers mean nothing"
            return f"trained on the phantom, drawn chests{calibrated if self.calibration is None else ''}{meaning}"
        return f"trained on {self.dataset}{calibrated}"


def load_trained(checkpoint: str | Path, device: str = "auto") -> Trained:
    """The network of a checkpoint, a file or the folder of its run, with the `calibration.json` beside it.
    Raises FileError: the file is no checkpoint, holds no finished epoch or weights that are not finite, or the calibration is
    for other findings.
    """
    path = Path(checkpoint).expanduser()
    state, path = read_checkpoint(path, "Name checkpoint.pt of a run, or its folder.")
    findings = tuple(state["findings"])
    try:
        config = TrainConfig(**{name: value for name, value in state["identity"].items() if name != "data"})
        if config.backbone == MLP:
            raise ValueError("it was trained on embeddings, and an image needs a network of images")
        _check_shapes(config, len(findings), state["best"]["model"])
        net = build_network(config, len(findings), config.image_size, _unfilled(config))
        net.load_state_dict(state["best"]["model"])
    except Exception as error:  # what is no configuration, or no network, raises one of several types
        raise FileError(f"{path}: no network can be made of it ({one_line(error)}).") from error
    if broken := [name for name, values in net.state_dict().items() if not values.isfinite().all()]:
        raise FileError(f"{path}: weights should be finite. Found NaN or infinity in {broken[0]}: train it again.")
    calibration = path.with_name(CALIBRATION)
    pairs = read_calibration(calibration, findings) if calibration.is_file() else None
    return Trained(net.to(resolve_device(device)).eval(), findings, config.image_size, config.dataset, pairs)


def _check_shapes(config: TrainConfig, num_tasks: int, model: dict[str, Tensor]) -> None:
    """Raise ValueError unless the network of a configuration has the tensors of `model`. It takes no memory."""
    if config.architecture != "hard_sharing":
        # what there is of each finding is told by two, before it is built for all
        one, two = (len(_shapes(config, number)) for number in (1, 2))
        if len(model) != one + (num_tasks - 1) * (two - one):
            raise ValueError("its configuration is of another network")
    if _shapes(config, num_tasks) != {name: value.shape for name, value in model.items()}:
        raise ValueError("its configuration is of another network")


def _unfilled(config: TrainConfig) -> Weights:
    """The pretrained network may have other layers; its weights are not needed."""
    return "unfilled" if config.pretrained else False


def _shapes(config: TrainConfig, num_tasks: int) -> dict[str, torch.Size]:
    with torch.device("meta"), _SmallOnCpu() if "regnet" in config.backbone else nullcontext():
        net = build_network(config, num_tasks, config.image_size, _unfilled(config))
    return {name: value.shape for name, value in net.state_dict().items()}


class _SmallOnCpu(TorchFunctionMode):
    """RegNets compute their widths with tensors, which must have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "cpu"} if func in (torch.arange, torch.tensor) else {})})


@torch.no_grad()
def predict_image(trained: Trained, image: UInt8[np.ndarray, "h w"]) -> pd.Series:
    """The probability of each finding, highest first, calibrated if the run has a calibration.

    The image should have the network's size, as `decode(path, trained.image_size)` gives it.
    Raises ValueError: the network's output is not finite.
    """
    device = next(trained.net.parameters()).device
    logits = trained.net(to_input(torch.tensor(image)[None]).to(device)).double().cpu().numpy()
    if not np.isfinite(logits).all():
        where = trained.findings[np.isfinite(logits[0]).argmin()]
        raise ValueError(f"the network's output should be finite. Found NaN or infinity for {where}: train it again.")
    calibration = np.tile([1.0, 0.0], (logits.shape[1], 1)) if trained.calibration is None else trained.calibration
    index = pd.Index(trained.findings, name="finding")
    return pd.Series(calibrate(logits, calibration)[0], index, name="probability").sort_values(ascending=False)
