"""Sharing: arms of one size, cells that train what they say, and an analysis that finds what was put into the tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from study_tables import write_sharing
from torch import nn

from deepchest_utils import FINDINGS, TrainConfig
from deepchest_utils.datasets.phantom.population import latent_correlation
from deepchest_utils.models.sharing import build_network
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import replication, sharing
from deepchest_utils.studies.sharing import ALL, ARMS, agreement, judge_predictors, repeatability
from deepchest_utils.sweep import run_sweep

pytestmark = pytest.mark.filterwarnings("ignore:.*findings without a positive")
K = 13


def size_of(arm: str) -> tuple[int, int]:
    """Parameters, and multiply-adds of an image of 32 px in convolutions and heads."""
    net, operations = build_network(TrainConfig(**ARMS[arm]), 14, 32, False), 0

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal operations
        operations += layer.weight.numel() * output.shape[2:].numel()

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    net.eval()(torch.zeros(1, 1, 32, 32))
    return sum(p.numel() for p in net.parameters()), operations + net.head.weight.numel()


def test_fourteen_narrow_networks_have_the_size_of_the_shared_one():
    (shared, operations), (single, others) = size_of("shared"), size_of("single")
    assert single / shared == pytest.approx(1.01, abs=0.005)
    assert others / operations == pytest.approx(1.08, abs=0.005)


def test_the_plan(tmp_path, capsys):
    """Replicates of its own; every pair once; each cell in a folder of its own."""
    for stage in ("sizes", "transfer"):
        sharing.main([stage, "--out", str(tmp_path), "--jobs", "1", "--plan"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" h in")[0].rpartition(", ")[0] for line in lines] == [
        "sharing_sizes_tuning: 32 cells, 32 to run", "sharing_sizes: 40 cells, 40 to run",
        "sharing_transfer_tuning: 56 cells, 56 to run", "sharing_transfer: 465 cells, 465 to run",
    ]  # fmt: skip
    assert sum(float(line.split(" h in")[0].rpartition(", ")[2]) for line in lines) <= 3
    assert not {*replication.MAIN, *replication.RULE, *replication.TUNING} & {*sharing.MAIN, sharing.TUNING}
    cells = list(sharing.transfer(tmp_path))[-1][1]
    assert len({cell.id for cell in cells}) == len(cells)
    assert len([c for c in cells if c.config.seed == sharing.MAIN[0] and len(c.findings) == 2]) == K * (K - 1) // 2
    assert all(c.findings == (list(FINDINGS) if c.method == ALL else c.method.split(" + ")) for c in cells)


def test_agreement_is_spearmans_within_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 6))
    for matrix in (a, b):
        np.fill_diagonal(matrix, np.nan)
    rows = [stats.spearmanr(np.delete(a[i], i), np.delete(b[i], i))[0] for i in range(6)]
    assert agreement(a, b) == pytest.approx(np.mean(rows))
    assert agreement(a + 9 * rng.normal(size=(6, 1)), b) == pytest.approx(
        np.mean(rows)
    )  # what a row has in common is no matter
    assert agreement(a, np.exp(a)) == pytest.approx(1)
    b[2], b[:, 2] = np.nan, np.nan  # a finding without a gradient
    keep = np.delete(np.arange(6), 2)
    assert agreement(a, b) == pytest.approx(agreement(a[np.ix_(keep, keep)], b[np.ix_(keep, keep)]))


def symmetric(rng: np.random.Generator) -> np.ndarray:
    """A predictor in which some findings have more of everything, as cosines and lifts have."""
    own, pair = rng.normal(size=K), rng.normal(size=(K, K))
    matrix = own[:, None] + own + pair + pair.T
    np.fill_diagonal(matrix, np.nan)
    return matrix


def test_a_predictor_without_a_relation_is_seldom_significant():
    rng, found = np.random.default_rng(1), []
    for _ in range(100):
        transfer = rng.normal(size=K)[:, None] + rng.normal(size=K) + rng.normal(size=(5, K, K))
        transfer[:, range(K), range(K)] = np.nan
        found.append(judge_predictors(transfer, {"nothing": symmetric(rng)}, draws=99).p[0])
    assert np.mean(np.array(found) <= 0.05) <= 0.10
    assert np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.15)


def test_the_predictor_that_transfer_follows_is_found():
    rng = np.random.default_rng(2)
    truth, other = symmetric(rng), symmetric(rng)
    transfer = 0.01 * truth + rng.normal(0, 0.01, (5, K, K))
    assert repeatability(transfer) > 0.5 > 0.2 > abs(repeatability(transfer - 0.01 * truth))
    table = judge_predictors(transfer, {"other": other, "truth": truth}, draws=400)
    assert list(table.predictor) == ["truth", "other"]
    best, worst = table.iloc[0], table.iloc[1]
    assert best.p_holm < 0.01 < 0.05 < worst.p_holm
    assert best.low > 0.5
    assert best.low < best.agreement <= best.high
    assert best.behind == 0 < worst.behind_low < worst.behind < worst.behind_high
    again = judge_predictors(transfer, {"other": other, "truth": truth}, draws=400)
    pd.testing.assert_frame_equal(table, again)


def test_tables_are_read_as_they_were_made(tmp_path):
    rng = np.random.default_rng(3)
    gain, angle = rng.normal(0, 0.01, (14, 14)), rng.normal(size=(14, 20))
    write_sharing(tmp_path, gain, angle @ angle.T, [0.03, 0.01, 0.0, -0.02], noise=0.0005)
    found = sharing.transfers(tmp_path)
    assert found.shape == (5, K, K)
    off = ~np.eye(K, dtype=bool)
    assert np.isnan(found[:, ~off]).all()
    np.testing.assert_allclose(found.mean(0)[off], gain[:K, :K][off], atol=0.002)
    named = sharing.predictors(tmp_path)
    length = np.linalg.norm(angle, axis=1)
    cosines = angle @ angle.T / np.outer(length, length)
    np.testing.assert_allclose(named["gradient cosine"][off], cosines[:K, :K][off], atol=1e-6)
    np.testing.assert_array_equal(named["drawn correlation"][off], latent_correlation()[:K, :K][off])
    assert named["label lift"][FINDINGS.index("Pneumonia"), FINDINGS.index("Edema")] == pytest.approx(
        340 * 112120 / (1431 * 2303)
    )
    judged = sharing.compare_sharing(sharing.sharing_rows(tmp_path)).query("metric == 'auroc'")
    sizes = judged[judged.kind == sharing.EQUAL_SIZE].set_index("num_train")
    assert list(sizes.index) == list(sharing.LENGTHS)
    assert sizes["mean"].to_numpy() == pytest.approx([0.03, 0.01, 0.0, -0.02], abs=0.001)
    assert sizes.verdict[250] == "higher"
    assert sizes.verdict[4000].endswith("equivalent")
    assert sizes.verdict[16000] == "lower"
    assert (sizes.p_holm[250] > 1.5 * sizes.p[250]) & (set(sizes.pairs) == {5})
    others = judged.set_index("kind")["mean"]
    of_all = (gain - np.diag(np.diag(gain))).sum(1)[:K].mean() / 13
    assert others[sharing.FULL_SIZE] == pytest.approx(of_all, abs=0.001)
    assert others[sharing.PAIRS] == pytest.approx(gain[:K, :K][off].mean(), abs=0.001)


@pytest.fixture
def small(monkeypatch):
    """Cells of less than a second, three findings."""
    monkeypatch.setattr(replication, "IMAGES", {"num_train": 96, "num_val": 64, "num_test": 80})
    monkeypatch.setattr(replication, "BASE", {**replication.BASE, "image_size": 28, "min_positives": 1})
    for name in ("VAL_POSITIVES", "TEST_POSITIVES"):
        monkeypatch.setattr(replication, name, 2)
    own = {
        "LENGTHS": {96: 2},
        "SETTINGS": sharing.SETTINGS[:2],
        "MAIN": (4101, 4102),
        "SIZE": 96,
        "EARLY": 1,
        "EPOCHS": 2,
    }
    for name, value in {**own, "UNUSED": 64, "MEASURED": 128}.items():
        monkeypatch.setattr(sharing, name, value)
    monkeypatch.setattr(sharing, "counted", lambda: ["Atelectasis", "Effusion", "Infiltration"])


@pytest.mark.slow
def test_stages_run_resume_and_give_the_same_rows_again(small, tmp_path, capsys):
    for stage, cells in (("sizes", 4), ("transfer", 2 * (3 + 3 + 2))):
        sharing.main([stage, "--out", str(tmp_path), "--jobs", "1"])
        made = RunTable(tmp_path / f"sharing_{stage}.csv")
        assert set(made.cells.status) == {"done"}, list(made.cells.error)
        assert len(made.cells) == cells
        tuning = RunTable(tmp_path / f"sharing_{stage}_tuning.csv").rows
        assert set(tuning.split) == {"val"}  # nothing of the test
        capsys.readouterr()
        sharing.main([stage, "--out", str(tmp_path), "--plan"])
        assert "0 to run" in capsys.readouterr().out.splitlines()[-1]
    rows = made.rows
    assert set(rows.task[rows.method == "Effusion"]) == {"Effusion"}
    assert set(rows.task[rows.method == "Atelectasis + Effusion"]) == {"Atelectasis", "Effusion"}
    chosen = list(sharing.transfer(tmp_path))[-1][1]
    again = run_sweep([chosen[4], chosen[7]], tmp_path / "again.csv", 1, threads=1).rows
    for cell, part in again.groupby("cell"):
        same = rows[rows.cell == cell]
        pd.testing.assert_frame_equal(part.reset_index(drop=True), same.reset_index(drop=True), check_exact=True)
    assert sharing.transfers(tmp_path).shape == (2, 3, 3)
    assert {m.shape for m in sharing.predictors(tmp_path, epochs=1).values()} == {(3, 3)}
    products = rows[rows.metric.str.startswith(sharing.PRODUCT)]
    assert products.groupby("cell").size().eq(14 * 14).all()
    kinds = sharing.compare_sharing(sharing.sharing_rows(tmp_path))
    assert set(kinds.kind) == {sharing.EQUAL_SIZE, sharing.FULL_SIZE, sharing.PAIRS}
