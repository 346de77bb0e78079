"""Which runs may share a mean: the same data and settings, method and seed apart."""

import json
from typing import Any

import pandas as pd

from deepchest_utils.training import TrainConfig
from deepchest_utils.weighting.spec import format_method

# no part of the settings that runs share: what a line of the summary is about, and what says which data they are
LINE = ("method", "method_options", "architecture", "seed", "data_seed", "split")
OWN_DATA = "each seed its own data"


def describe_run(run: str, config: TrainConfig, data: object, commit: object) -> dict[str, Any]:
    """A row of `Reruns.runs`. run: where it is; data: its fingerprint, and commit, if they are known, else no text."""
    settings = {name: value for name, value in config.identity().items() if name not in LINE}
    settings |= settings.pop("data_options")
    method = format_method(config.method, config.method_options)
    method += "" if config.architecture == TrainConfig.architecture else f"@{config.architecture}"
    if not isinstance(data, str):
        data = f"{config.data_root}, split {config.split}, seed {config.data_seed}"
    return {
        "run": run, "method": method, "seed": config.seed, "data_seed": config.data_seed, "data": data,
        "commit": commit if isinstance(commit, str) else None, "settings": settings,
        "key": json.dumps(settings, sort_keys=True),
    }  # fmt: skip


def differing_settings(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings that are not the same in all runs, a row a run; lists and the like as text."""
    names = dict.fromkeys(name for settings in runs.settings for name in settings)
    columns: dict[str, list[Any]] = {}
    for name in names:
        values = [settings.get(name) for settings in runs.settings]
        texts = [json.dumps(value, sort_keys=True) for value in values]
        if len(set(texts)) > 1:
            columns[name] = [
                t if isinstance(v, dict | list) else v for v, t in zip(values, texts, strict=True)
            ]
    return pd.DataFrame(columns, runs.index, dtype=object)


def name_groups(runs: pd.DataFrame, differing: pd.DataFrame) -> list[str]:
    """Each run's group, in words that tell it from the others.

    Phantoms that were drawn with the seed of the run, as in notebook 03, are independent draws, and a group of their own.
    Other data differ from seed to seed in which patients are where, not in who they are: a mean over them would look
    surer than it is.
    """
    alone = runs.groupby(["key", "data"]).seed.transform("nunique") == 1
    phantom = pd.Series([settings["dataset"] == "phantom" for settings in runs.settings], runs.index)
    own = phantom & alone & (runs.seed == runs.data_seed)
    own &= runs.seed.where(own).groupby(runs.key).transform("nunique") > 1
    # of official splits the seed says nothing
    seeds = runs.groupby(["key", "data"]).data_seed.transform("min")
    several = runs[~own].groupby(["key", seeds]).data.transform("nunique").reindex(runs.index) > 1
    seeds_differ = own.any() or seeds.nunique() > 1
    names = []
    for place, run in runs.iterrows():
        words = [f"{run.settings['dataset']}, {run.settings['image_size']} px"]
        shown = differing.loc[place].drop(["dataset", "image_size"], errors="ignore").dropna()
        words += [f"{name} {value}" for name, value in shown.items()]
        if own[place]:
            words.append(OWN_DATA)
        elif several[place] or seeds_differ:
            which = run.data if " " in run.data else run.data[:6]
            words.append(f"data seed {seeds[place]}" + (f" ({which})" if several[place] else ""))
        names.append(", ".join(words))
    return names
