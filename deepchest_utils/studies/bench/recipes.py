"""Three ways to train the same network. Each gives a function that trains an epoch and gives validation's macro AUROC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchjd.aggregation import UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward
from torchvision.transforms import v2

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import ChestXrays, Splits
from deepchest_utils.models.augment import MEAN, STD, to_input
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.models.trunks import build_trunk
from deepchest_utils.results.metrics import macro, score_tasks
from deepchest_utils.training.loop import Loop
from deepchest_utils.weighting import DeepChest


def _macro_auroc(data: ChestXrays, logits: Tensor) -> float:
    return macro(score_tasks(data.labels, logits.numpy(), {})["auroc"])[0]


def this_project(config: TrainConfig, data: Splits, folder: Path) -> Callable[[], float]:
    """`train`'s own loop."""
    loop, macro_auroc = Loop(config, data), {"split": "val", "task": "macro", "metric": "auroc"}

    def epoch() -> float:
        loop.run_epoch()
        rows = (row for row in reversed(loop.history) if macro_auroc.items() <= row.items())
        return float(next(rows)["value"])

    return epoch


class Files(Dataset[tuple[Tensor, Tensor]]):
    """A file an image, decoded and augmented by Pillow each time it is read."""

    def __init__(self, folder: Path, data: ChestXrays, augment: bool):
        self.folder, self.labels = folder, torch.from_numpy(data.labels)
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(data.images):
            Image.fromarray(image).save(folder / f"{i}.png")
        augmentation = [v2.RandomAffine(7, (0.05, 0.05), (0.9, 1.1)), v2.ColorJitter(0.15, 0.15)] if augment else []
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN], [STD])]
        self.transform = v2.Compose([*augmentation, *to_tensor])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.folder / f"{index}.png") as image:
            return self.transform(image.convert("L")), self.labels[index]


def published_style(config: TrainConfig, data: Splits, folder: Path) -> Callable[[], float]:
    """After the authors' published recipe: files decoded one by one, augmentation by Pillow, a two-way softmax head for each
    finding, losses and accuracies read back with `.item()` for each finding and batch, RMSprop. DeepChest's rule sets the
    weights."""
    tasks = len(data.findings)
    trunk, width = build_trunk(config.backbone, config.image_size)
    heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(tasks))
    optimizer = torch.optim.RMSprop([*trunk.parameters(), *heads.parameters()], lr=1e-3)
    train_loader = DataLoader(Files(folder / "train", data.train, True), config.batch_size, shuffle=True)
    val_loader = DataLoader(Files(folder / "val", data.val, False), config.batch_size)
    rule = DeepChest(tasks)

    def epoch() -> float:
        trunk.train()
        correct, num_images, running_loss = [0] * tasks, 0, [0.0] * tasks
        for x, y in train_loader:
            features = trunk(x)
            total: Any = 0.0  # from the first head on a tensor
            for k, head in enumerate(heads):
                logits = head(features)
                loss = cross_entropy(logits, y[:, k].long())
                total = total + rule.weights[k].item() * loss
                running_loss[k] += loss.item()
                correct[k] += (logits.argmax(1) == y[:, k]).sum().item()
            num_images += len(x)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        rule.update([c / num_images for c in correct])
        trunk.eval()
        with torch.no_grad():
            features = torch.cat([trunk(x) for x, _ in val_loader])
            two_way = torch.stack([head(features) for head in heads], 1)
        return _macro_auroc(data.val, two_way[..., 1] - two_way[..., 0])

    return epoch


def torchjd_style(config: TrainConfig, data: Splits, folder: Path) -> Callable[[], float]:
    """After TorchJD's multi-task example: a list of losses, `mtl_backward`, UPGrad on the trunk's parameters, Adam; a
    TensorDataset, no augmentation."""
    net = MultiTaskNet(config.backbone, len(data.findings), config.image_size)
    optimizer, aggregator = torch.optim.Adam(net.parameters(), lr=config.lr), UPGrad()
    train_x, val_x = (to_input(torch.from_numpy(np.array(split.images))) for split in (data.train, data.val))
    train_data = TensorDataset(train_x, torch.from_numpy(data.train.labels))
    train_loader = DataLoader(train_data, config.batch_size, shuffle=True)

    def epoch() -> float:
        net.train()
        for x, y in train_loader:
            features = net.features(x)
            logits = net.head(features)
            losses = [binary_cross_entropy_with_logits(logits[:, k], y[:, k]) for k in range(y.shape[1])]
            optimizer.zero_grad()
            mtl_backward(losses, features=features, retain_graph=True)
            jac_to_grad(net.trunk.parameters(), aggregator)
            optimizer.step()
        net.eval()
        with torch.no_grad():
            return _macro_auroc(data.val, torch.cat([net(x) for x in val_x.split(256)]))

    return epoch


RECIPES = {
    "this project": this_project,
    "published recipe's style": published_style,
    "TorchJD's example's style": torchjd_style,
}
