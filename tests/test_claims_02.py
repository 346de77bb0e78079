"""What notebook 02 says in its text, computed again or read from its committed outputs."""

import re

import numpy as np
import pytest
import torch
from claims import Committed, row

from deepchest_utils import FINDINGS, DeepChest
from deepchest_utils.datasets.findings import NIH_PREVALENCE
from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.results.metrics import score_tasks
from deepchest_utils.studies import toy
from deepchest_utils.studies.replay import epoch_reports, replay
from deepchest_utils.weighting import AMTL, DTP, PUBLISHED_INITIAL_WEIGHTS, EpochReport

NOTEBOOK = Committed("02_loss_trend_weighting")
SAID = NOTEBOOK.text
NIH = np.array([NIH_PREVALENCE[name] for name in FINDINGS])
ANGLES = np.arange(0, 90.5, 0.5)


def test_the_toy_s_labels_and_auroc_are_those_of_drawn_points():
    x, y = toy.draw_tasks(200_000, np.random.default_rng(0))
    assert y.mean(0).numpy() == pytest.approx(toy.PREVALENCES, abs=0.003)
    for degrees in (0.0, 35.0, 80.0):
        along = x.numpy() @ np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], np.float32)
        drawn = score_tasks(y.numpy(), np.repeat(along[:, None], 3, axis=1))["auroc"]
        assert drawn == pytest.approx(toy.exact_auroc(degrees), abs=0.01)
    assert toy.exact_auroc(90.0)[0] == pytest.approx(0.5)  # at a right angle to A


def test_the_toy_s_relative_loss_is_one_where_nothing_is_seen_and_least_at_a_task_s_own_angle():
    assert toy.exact_relative_loss(90.0)[0] == pytest.approx(1, abs=1e-3)
    for k, angle in enumerate(toy.ANGLES):
        assert toy.exact_relative_loss(angle)[k] < min(toy.exact_relative_loss(angle + d)[k] for d in (-5.0, 5.0))


def test_best_compromise_and_resting_place():
    mean = np.array([toy.exact_auroc(degrees).mean() for degrees in ANGLES])
    assert ANGLES[mean.argmax()] == 44.5
    assert SAID.count("44.5 degrees") == 2
    loss = np.array([toy.exact_relative_loss(degrees) for degrees in ANGLES])
    behind = loss > loss.mean(1, keepdims=True)
    assert ANGLES[behind[:, 0].argmax()] in (36, 36.5)
    assert "Up to 36 degrees A is ahead of the mean" in SAID
    assert behind[ANGLES <= 37, 2].all()  # C, on the whole way
    assert not behind[(ANGLES > 25) & (ANGLES < 45), 1].any()  # B is soon ahead


def test_where_signals_lead():
    reached = {name: row(NOTEBOOK.shown("toy-signals-figure"), name) for name in ("equal weights", "accuracy", "loss trend", "L/H",
               "AUROC", "balanced accuracy", "L/H, floor 0.25", "known best")}  # fmt: skip
    auroc = {name: values[1] for name, values in reached.items()}
    assert auroc["accuracy"] < auroc["equal weights"]
    assert abs(reached["loss trend"][0] - reached["equal weights"][0]) < 3
    assert auroc["loss trend"] + 0.05 < min(auroc["AUROC"], auroc["balanced accuracy"], auroc["L/H"])
    assert max(v for k, v in auroc.items() if k != "known best") < auroc["known best"]
    assert reached["L/H, floor 0.25"][0] < reached["L/H"][0] - 5
    assert f"{reached['L/H, floor 0.25'][0]:.0f} degrees in place of {reached['L/H'][0]:.0f}" in SAID
    assert f"a mean AUROC of {auroc['accuracy']} against {auroc['equal weights']}" in SAID
    three = sorted(auroc[name] for name in ("L/H", "AUROC", "balanced accuracy"))
    assert f"reach {three[0]} to {three[2]}; the best is {auroc['known best']}" in SAID


def test_a_batch_s_gradient_is_noise():
    left, noise = (float(number) for number in re.findall(r": (0\.\d+)", NOTEBOOK.shown("c06")))
    assert noise == 0.25
    assert (left**2 - noise**2) / (1 - noise**2) < 0.01  # the signal's share of the squared length
    assert f"has {left} of one batch's length, where pure noise would leave {noise:.3f}" in SAID


def test_consequences_of_the_rule():
    assert 1.1**4 < 1.5 < 1.1**5
    assert "1.1^5 = 1.61" in SAID
    assert round(1.1**5, 2) == 1.61
    assert round(1.05**-100, 3) == 0.008
    assert round(np.log(1.05) / (np.log(1.1) + np.log(1.05)), 2) == 0.34
    assert (round(np.log(1.1), 3), round(np.log(1.05), 3)) == (0.095, 0.049)
    pair = DeepChest(2)
    path = []
    for _ in range(60):
        path.append(pair.weights.numpy())
        pair.update(torch.tensor([0.60, 0.62]) + 0.2 * pair.weights.log())
    assert np.array(path[-10:]).min() > 1.3
    assert np.max(path) == 1.5


def test_published_weights():
    published = {name: np.array(values) for name, values in PUBLISHED_INITIAL_WEIGHTS.items()}
    assert round(np.corrcoef(NIH, published["cnnmodel1"])[0, 1], 4) == 0.9991
    assert "a correlation of 0.9991" in SAID
    points = {name: 100 * (2 * (w - 1) - NIH) for name, w in published.items()}  # if the factor is one half
    assert abs(points["cnnmodel1"]).max() < 1
    below = {FINDINGS[k] for k in np.argsort(points["resnet"])[:2]}
    assert below == {"Effusion", "Atelectasis"}


def test_a_common_finding_is_behind_before_the_network_has_learned_anything():
    common, rare, mean = 1 - NIH_PREVALENCE["Infiltration"], 1 - NIH_PREVALENCE["Hernia"], 1 - NIH.mean()
    assert common < mean < rare
    assert f"Infiltration is in {1 - common:.0%} of the images and Hernia in {1 - rare:.1%}" in SAID
    assert (
        f'"absent" is right in {common:.0%} and in {rare:.1%} of them. The mean over the findings is {mean:.0%}' in SAID
    )


def test_most_decisions_need_no_network():
    (share,) = re.findall(r"predicts: (\d+)% of 168", NOTEBOOK.shown("c19"))
    assert 85 <= int(share) < 95
    assert "Nine decisions in ten" in SAID


def test_signals_follow_prevalence_or_difficulty():
    rows = {
        name: row(NOTEBOOK.shown("c22"), name)
        for name in ("accuracy", "loss trend", "L/H", "AUROC", "balanced accuracy")
    }
    for name, (prevalence, difficulty, _) in rows.items():
        assert (prevalence > 0.5 > abs(difficulty)) if name == "accuracy" else (difficulty > 0.5 > abs(prevalence))
    flips = {name: values[2] for name, values in rows.items()}
    trend, others = flips.pop("loss trend"), flips.values()
    assert trend > 2 * max(others)
    assert f"flips in {trend:.0%} of its decisions, the others in {min(others):.0%} to {max(others):.0%}" in SAID


def test_dtp_follows_prevalence_and_amtl_cancels_it():
    p = torch.tensor(NIH)
    reports = [EpochReport(t, p, {"accuracy": 1 - p, "loss": prevalence_entropy(p)}) for t in range(1, 13)]
    dtp, amtl = DTP(14), AMTL(14)
    amtl.begin(p)
    for report in reports:
        dtp.end_epoch(report)
        amtl.end_epoch(report)
    assert np.corrcoef(np.log(NIH), dtp.weights.log())[0, 1] > 0.999
    assert (dtp.raw_weights / p**2).max() < 1.15  # about p squared
    shares = amtl.shares(torch.ones(14, dtype=torch.bool))
    assert shares.max() / shares.min() < 1 + 1e-9
    for kind in ("always absent", "network"):
        assert row(NOTEBOOK.shown("beside-figure"), f"DeepChest, {kind}")[0] > 0.7
        assert row(NOTEBOOK.shown("beside-figure"), f"DeepChest, {kind}")[1] == pytest.approx(2.7, abs=0.05)
        assert row(NOTEBOOK.shown("beside-figure"), f"DTP, {kind}")[0] > 0.9
        assert row(NOTEBOOK.shown("beside-figure"), f"DTP, {kind}")[1] > 2000
        assert row(NOTEBOOK.shown("beside-figure"), f"AMTL, {kind}")[0] < -0.5
    assert row(NOTEBOOK.shown("beside-figure"), "AMTL's exponents, network")[1] <= 1.02


def test_a_replay_is_what_the_loop_told_its_method():
    import pandas as pd

    findings, p = ("Mass", "Nodule"), torch.tensor([0.1, 0.2])
    scores = {1: (0.9, 0.8), 2: (0.7, 0.8), 3: (np.nan, 0.8)}
    base = {"metric": "accuracy", "split": "train"}
    rows = [{**base, "epoch": t, "task": name, "value": a}
            for t, both in scores.items() for name, a in zip(findings, both, strict=True)]  # fmt: skip
    rows += [{**r, "task": "macro"} for r in rows[:1]] + [{**r, "split": "val", "value": 0.0} for r in rows[:2]]
    reports = epoch_reports(pd.DataFrame(rows), findings, p)
    assert [report.epoch for report in reports] == [1, 2, 3]
    path = replay(DeepChest(2), reports)
    assert path == pytest.approx(
        np.array([[1, 1], [1 / 1.05, 1.1], [1.1 / 1.05, 1.1 / 1.05], [1.1 / 1.05, 1.1 / 1.05**2]])
    )
