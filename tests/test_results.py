"""The committed results of the study: whole, with where they came from, and as large as notebook 04 says."""

import json

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import TrainConfig
from deepchest_utils.config import parse_method
from deepchest_utils.datasets.phantom.load import phantom_of
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.statistics import ITSELF, compare_methods
from deepchest_utils.results.store import DIGITS, RunTable
from deepchest_utils.sweep import best_lr
from deepchest_utils.weighting import check_names

RESULTS = PROJECT / "data" / "results"
RATES = tuple(f"rate_{name}" for name in ("1000", "4000", "noise"))  # of notebook 07, and the next
STUDIES = ("phantom", "phantom_ablations", "phantom_rate", "nih_sample")
JUDGED = tuple(f"judge_{name}" for name in ("1000", "4000", "16000", "noise", "nih"))  # of notebook 07
PROVENANCE = [
    "settings",
    "data",
    "seconds",
    "commit",
    "python",
    "torch",
    "torchvision",
    "processor",
    "cores",
    "threads",
]


@pytest.fixture(scope="module")
def studies() -> dict[str, RunTable]:
    return {name: RunTable(RESULTS / f"{name}.csv") for name in (*STUDIES, *JUDGED, *RATES)}


@pytest.mark.parametrize("name", [*STUDIES, *JUDGED, *RATES])
def test_every_run_is_whole_and_says_where_it_came_from(name, studies):
    tables = studies[name]
    cells = tables.cells
    assert (cells.status == "done").all()
    assert cells.cell.is_unique
    assert set(cells.cell) == set(tables.rows.cell) == set(tables.replicates)
    assert set(cells.cell) == set(tables.rows.cell[tables.rows.split == "test"])
    assert cells[PROVENANCE].notna().all(axis=None)
    for row in cells.itertuples():
        check_names(parse_method(row.method.partition("@")[0])[0])
        TrainConfig(**json.loads(row.settings))


@pytest.mark.parametrize(("name", "methods"), [("phantom", 20), ("nih_sample", 10)])
def test_enough_methods_have_five_seeds(name, methods, studies):
    seeds = studies[name].cells.groupby("method").seed.nunique()
    assert (seeds >= 5).sum() >= methods


def test_every_finding_of_the_phantom_has_fifty_positives_in_the_test_split(studies):
    (options,) = {json.dumps(json.loads(s)["data_options"], sort_keys=True) for s in studies["phantom"].cells.settings}
    assert phantom_of(0, "test", json.loads(options)["num_test"]).labels.sum(0).min() >= 50


@pytest.mark.parametrize("name", JUDGED)
def test_the_judged_have_the_same_seeds_and_data_that_nothing_was_chosen_on(name, studies):
    cells = studies[name].cells
    seeds = cells.groupby("method").seed.agg(set)
    assert len(seeds) == 9
    assert all(found == seeds.iloc[0] for found in seeds)
    assert len(seeds.iloc[0]) >= 10
    assert cells.data.nunique() == 1
    looked_at = [pd.read_csv(path, dtype=str).data for path in RESULTS.glob("candidates_*_cells.csv")]
    assert len(looked_at) == 2
    looked_at += [tables.cells.data for study, tables in studies.items() if study in STUDIES and study != "nih_sample"]
    assert name == "judge_nih" or not set(cells.data) & set(pd.concat(looked_at))


@pytest.mark.parametrize("name", RATES)
def test_another_rate_is_all_that_differs(name, studies):
    here, judged = studies[name].cells, studies[name.replace("rate", "judge")].cells
    equal = judged[judged.method == "equal"].set_index("seed")
    for row in here.itertuples():
        assert row.data == equal.data[row.seed]
        other, own = json.loads(equal.settings[row.seed]), json.loads(row.settings)
        assert own.pop("lr") != other.pop("lr")
        assert own == other
    assert set(here.seed) == set(equal.index)


@pytest.mark.parametrize(
    ("name", "tuning"),
    [*((name, f"{name}_tuning") for name in ("phantom", "nih_sample")), *((name, "rule_tuning") for name in JUDGED)],
)
def test_learning_rates_are_those_that_validation_chose(name, tuning, studies):
    chosen = best_lr(RESULTS / f"{tuning}.csv")
    for row in studies[name].cells.itertuples():
        # another architecture takes the method's own, a composition that of the method it is built on
        inner = row.method.partition("@")[0].removeprefix("deepchest+")
        assert json.loads(row.settings).get("lr", TrainConfig.lr) == chosen[inner], row.method


def test_tuning_saw_no_test_image():
    paths = list(RESULTS.glob("*_tuning.csv"))
    assert len(paths) >= 3
    for path in paths:
        assert set(pd.read_csv(path).split) == {"val"}


@pytest.mark.parametrize("name", ["phantom", "phantom_ablations", "nih_sample", *JUDGED])
def test_summary_is_made_of_the_tables(name, studies):
    """To the byte; the other baselines are left out, as the largest table would take ten seconds."""
    path = RESULTS / f"{name}_summary.csv"
    lines, baselines = path.read_text().splitlines(), pd.read_csv(path).baseline
    again = compare_methods(studies[name], ["equal"]).to_csv(index=False, float_format=DIGITS).splitlines()
    assert again == lines[:1] + [lines[1 + row] for row in np.flatnonzero(baselines.isin(["equal", ITSELF]))]


@pytest.mark.parametrize("name", ["phantom", "nih_sample"])
def test_localization_is_of_the_same_pairs_in_every_run(name):
    from deepchest_utils.studies.localization import SCORES, read_localization

    table = read_localization(RESULTS / f"localization_{name}.csv")
    runs = [part[["image", "finding", "patient"]].reset_index(drop=True) for _, part in table.groupby("cell")]
    assert all(pairs.equals(runs[0]) for pairs in runs)
    seeds = table.groupby("method").seed.unique()
    assert {"equal", "deepchest"} < set(seeds.index)
    assert len(seeds) == 4
    assert all(sorted(found) == list(range(5)) for found in seeds)
    assert table[[*SCORES]].stack().between(0, 1).all()
    assert not table[[*SCORES]].isna().any().any()
