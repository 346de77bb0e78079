"""What each process of torchrun does in `test_distributed`: train by every configuration that a file lists, and save what
came of it. Not collected by pytest."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from deepchest_utils import TrainConfig, train
from deepchest_utils.datasets import DataWarning, load_dataset
from deepchest_utils.distributed import all_gather, process_group, rank, world_size
from deepchest_utils.training.loop import Loop


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def same_everywhere(tensors) -> bool:
    """Whether all processes have the same bits."""
    own = flat(tensors)
    return all(torch.equal(other, own) for other in all_gather(own[None]))


def results(configs: list[dict]) -> list[dict]:
    """Of each run: its losses, the network and how it began, and whether the processes agree."""
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        data = load_dataset("phantom", image_size=32, num_train=52, num_val=31, num_test=29)
    for given in configs:
        run = train(TrainConfig(image_size=32, epochs=2, batch_size=24, device="cpu", **given), data)
        losses = run.history[run.history.metric == "loss"]  # a rank may change by a hair, a weight by its condition
        agree = same_everywhere([*run.model.state_dict().values(), *run.method.parameters(), run.method.weights])
        out.append(
            {
                "losses": torch.tensor(losses.value.to_numpy()),
                "net": flat(run.model.parameters()),
                "start": flat(Loop(run.config, data).net.parameters()),
                "agree": agree,
                "ranks": world_size(),
            }
        )
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    die = os.environ.get("DIES")
    with process_group("cpu"):
        found = results(json.loads((folder / "configs.json").read_text())) if not die else None
        if found is None:
            if rank() == int(die):
                raise RuntimeError("this process breaks")
            torch.distributed.barrier()
        if rank() == 0:
            torch.save(found, folder / "found.pt")
