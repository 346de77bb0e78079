"""A run under way as tensors, numbers and strings, and back."""

from typing import Any

import torch

from deepchest_utils.files import FileError, brief
from deepchest_utils.training.loop import Loop


def _parts(loop: Loop) -> dict[str, Any]:
    return {
        "net": loop.net,
        "method": loop.method,
        "optimizer": loop.optimizer,
        "schedule": loop.schedule,
        "scaler": loop.scaler,
    }


def state_of(loop: Loop) -> dict[str, Any]:
    """What a checkpoint holds; shares its tensors with the run, so it is to be written before the next step."""
    rng = {
        "torch": torch.get_rng_state(),
        "order": loop.order_rng.get_state(),
        "augment": loop.augment_rng.get_state(),
    }
    if loop.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(loop.device)
    return {
        **{name: part.state_dict() for name, part in _parts(loop).items()},
        "rng": rng,
        "identity": loop.identity(),
        "findings": list(loop.data.findings),
        "epoch": loop.epoch,
        "under_way": loop.under_way,
        "rows": loop.rows,
        "best": {"epoch": loop.best_epoch, "score": float(loop.best_score), "model": loop.best_model},
    }


def restore(loop: Loop, state: dict[str, Any]) -> None:
    """Put the loop where it was. Raises FileError if the state does not fit it."""
    try:
        for name, part in _parts(loop).items():
            part.load_state_dict(state[name])
        rng, best = state["rng"], state["best"]
        torch.set_rng_state(rng["torch"])
        loop.order_rng.set_state(rng["order"])
        loop.augment_rng.set_state(rng["augment"])
        if loop.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], loop.device)
        loop.epoch, loop.rows, loop.under_way = state["epoch"], state["rows"], state["under_way"]
        loop.best_epoch, loop.best_score, loop.best_model = best["epoch"], best["score"], best["model"]
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"the checkpoint in {loop.config.run_dir} does not fit the run ({brief(error)}). "
            "Choose another run_dir."
        ) from error
