"""One image file of the user's own: what a trained network says, and where it looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from torch import nn

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets.cache import decode
from deepchest_utils.files import FileError, one_line
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.sharing import ARCHITECTURES
from deepchest_utils.results.metrics import CALIBRATION, calibrate, read_calibration
from deepchest_utils.results.store import read_checkpoint
from deepchest_utils.training.setup import resolve_device

NOTE = "Research and teaching only, not for clinical use."


@dataclass(frozen=True)
class Trained:
    """The network of a checkpoint's best epoch, in eval mode. calibration: (K, 2), or None if the run has none."""

    net: nn.Module
    findings: tuple[str, ...]
    image_size: int
    calibration: np.ndarray | None


def load_trained(checkpoint: str | Path, device: str = "auto") -> Trained:
    """checkpoint: the file, or the folder of its run, whose `calibration.json` is read too. Raises FileError if it is no
    checkpoint, if no epoch of it is finished, or if the calibration is of other findings."""
    path = Path(checkpoint).expanduser()
    path = path / "checkpoint.pt" if path.is_dir() else path
    state = read_checkpoint(path)
    findings = tuple(state["findings"])
    try:
        config = TrainConfig(**{name: v for name, v in state["identity"].items() if name != "data"})
        net = ARCHITECTURES[config.architecture](config.backbone, len(findings), config.image_size)
        net.load_state_dict(state["best"]["model"])
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path}: no network can be made of it ({one_line(error)}).") from error
    calibration, file = None, path.with_name(CALIBRATION)
    if file.is_file():
        calibration = read_calibration(file, findings)
    return Trained(net.to(resolve_device(device)).eval(), findings, config.image_size, calibration)


@torch.no_grad()
def predict_image(trained: Trained, image: UInt8[np.ndarray, "h w"]) -> pd.Series:
    """The probability of each finding, highest first, calibrated if the run has a calibration. image: of the size that
    the network was trained on, as `decode(path, trained.image_size)` gives it."""
    device = next(trained.net.parameters()).device
    logits = trained.net(to_input(torch.tensor(image)[None]).to(device)).double().cpu().numpy()
    no_change = np.tile([1.0, 0.0], (len(trained.findings), 1))
    known = no_change if trained.calibration is None else trained.calibration
    found = pd.Series(calibrate(logits, known)[0], pd.Index(trained.findings, name="finding"), name="probability")
    return found.sort_values(ascending=False)


def draw_maps(trained: Trained, path: Path, out: Path, findings: Sequence[str], cam: str = "layercam") -> None:
    """Write a picture of the image at 1024 px, and of the map of each finding over it. Raises ValueError for an `out` that
    is no .png, .svg or .pdf, or a network without one trunk."""
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"out should end in .png, .svg or .pdf. Found {out.name!r}.")
    from matplotlib.figure import Figure

    from deepchest_utils.explain.cam import heat_maps
    from deepchest_utils.notebook.figures import show_heat_map, show_radiograph
    from deepchest_utils.results.labels import pretty

    tasks = [trained.findings.index(name) for name in findings]
    maps = heat_maps(trained.net, decode(path, trained.image_size)[None], tasks, cam)
    shown = decode(path, 1024)
    fig = Figure(figsize=(3.2 * (len(tasks) + 1), 3.6), layout="constrained")
    axes = fig.subplots(1, len(tasks) + 1)
    show_radiograph(axes[0], shown, title=path.name)
    for ax, name, heat in zip(axes[1:], findings, maps.maps[0], strict=True):
        show_heat_map(ax, shown, heat, title=pretty(name))
    fig.supxlabel(f"{cam} at {', '.join(maps.layers)}. {NOTE}", fontsize=8)
    fig.savefig(out, dpi=160)
