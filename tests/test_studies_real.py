"""The study on real radiographs: folds, features that see no anatomy, settings chosen inside the training part."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepchest_utils import ChestXrays, load_dataset
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import real
from deepchest_utils.studies.real import (
    COUNTED,
    SETTINGS,
    border,
    choose,
    compare_folds,
    fold,
    main,
    make_features,
    statistics,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*findings without a positive", "ignore:.*grey levels")


def xrays(images: np.ndarray) -> ChestXrays:
    n = len(images)
    return ChestXrays(images, np.zeros((n, 1), np.float32), np.arange(n), ("A",), np.arange(n).astype(str))


def test_the_border_has_no_pixel_of_the_inside_and_statistics_no_place():
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64), np.uint8)
    other = images.copy()
    other[:, 3:-3, 3:-3] = 0
    assert border(xrays(images)).shape == (5, 64 * 64 - 58 * 58)
    np.testing.assert_array_equal(border(xrays(images)), border(xrays(other)))
    moved = images.reshape(5, -1)[:, np.random.default_rng(1).permutation(64 * 64)].reshape(images.shape)
    np.testing.assert_allclose(statistics(xrays(images)), statistics(xrays(moved)), rtol=1e-6)
    assert statistics(xrays(images))[0, 6] == pytest.approx(np.median(images[0]) / 255)


def test_cells_of_a_fold_share_data_and_start():
    one, other, later = (
        fold(Path("f.npz"), *args, SETTINGS[0]).config for args in (("equal", 1, 2), ("famo", 1, 2), ("equal", 2, 2))
    )
    assert {**one.identity(), "method": "famo"} == other.identity()
    assert (one.split, one.data_seed, later.data_seed) == ("2/5", 1, 2)
    assert len({(setting["lr"], setting["weight_decay"]) for setting in SETTINGS}) == 8


def rows_of(values: dict[tuple[str, int, int], tuple[float, float, int]]) -> pd.DataFrame:
    """(method, fold, number of the setting) -> validation, test and epoch, as `fold_rows` has them."""
    rows = []
    for cell, ((method, part, s), (val, test, epoch)) in enumerate(values.items()):
        same = {"cell": str(cell), "method": method, "seed": 1, "fold": f"{part}/5", "epoch": epoch, **SETTINGS[s]}
        rows += [{**same, "split": split, "metric": "auroc", "value": v} for split, v in (("val", val), ("test", test))]
    return pd.DataFrame(rows)


def test_a_setting_is_chosen_on_validation_in_each_fold():
    rows = rows_of({
        ("equal", 1, 0): (0.70, 0.9, 5), ("equal", 1, 1): (0.75, 0.6, 6), ("equal", 1, 2): (0.80, 0.5, 7),
        ("equal", 2, 0): (0.80, 0.4, 8), ("equal", 2, 1): (0.75, 0.9, 9),
    })  # fmt: skip
    chosen = choose(rows).set_index("fold")
    assert chosen.value.to_dict() == {"1/5": 0.5, "2/5": 0.4}
    assert chosen.epoch.to_dict() == {"1/5": 7, "2/5": 8}
    assert choose(rows, budget=1).value.tolist() == [0.9, 0.4]
    assert choose(rows, budget=2).value.tolist() == [0.6, 0.4]


def test_folds_are_compared_with_the_correction_for_their_overlap():
    differences = np.array([0.01, 0.02, -0.01, 0.0, 0.015])
    values = {("equal", k + 1, 0): (0.7, 0.7, 5) for k in range(5)}
    values |= {("famo", k + 1, 0): (0.7, 0.7 + d, 5) for k, d in enumerate(differences)}
    (row,) = compare_folds(choose(rows_of(values))).itertuples()
    error = differences.std(ddof=1) * np.sqrt(1 / 5 + 1 / 3)
    assert row.high - row.mean == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert row.p == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, 4))


@pytest.mark.slow
@pytest.mark.skipif("DEEPCHEST_NIH_SAMPLE" not in os.environ, reason="needs real radiographs")
def test_stages_on_real_radiographs(tmp_path, monkeypatch, capsys):
    make_features(Path(os.environ["DEEPCHEST_NIH_SAMPLE"]), tmp_path / "features")
    data = load_dataset("embeddings", tmp_path / "features/lite0.npz", split="1/5", seed=1)
    assert sum(map(len, data.parts.values())) == 2206
    positives = dict(zip(data.findings, sum(part.labels.sum(0) for part in data.parts.values()), strict=True))
    assert {name for name, count in positives.items() if count >= 5 * 20} == set(COUNTED)
    monkeypatch.setattr(real, "SETTINGS", SETTINGS[:2])
    monkeypatch.setattr(real, "BASE", {**real.BASE, "epochs": 3})
    monkeypatch.setattr(real, "FEW", 1)
    monkeypatch.setattr(real, "ROUNDS", 1)
    options = ["--features", str(tmp_path / "features"), "--out", str(tmp_path), "--jobs", "1"]
    main(["main", *options, "--methods", "equal", "deepchest"])
    main(["blind", *options])
    tables = RunTable(tmp_path / "real_main.csv")
    assert set(tables.cells.status) == {"done"}
    assert len(tables.cells) == 2 * 5 * 2
    capsys.readouterr()
    main(["main", *options, "--methods", "equal", "deepchest", "--plan"])
    assert "20 cells, 0 to run" in capsys.readouterr().out
    means = {name: choose(real.fold_rows(tmp_path / f"real_{name}.csv")) for name in ("main", "border", "statistics")}
    auroc = {
        name: rows[(rows.metric == "auroc") & (rows.method == "equal")].value.mean() for name, rows in means.items()
    }
    assert auroc["main"] > 0.6
    assert 0.5 < auroc["border"] < auroc["main"]
