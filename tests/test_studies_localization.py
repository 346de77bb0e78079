"""Many runs compared: resumed cell by cell, paired by seed and image, wrong requests refused."""

import shutil

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import TrainConfig, sweep
from deepchest_utils.__main__ import main
from deepchest_utils.studies.localization import compare_localization, localize_runs, read_localization
from deepchest_utils.sweep import make_trials

pytestmark = pytest.mark.filterwarnings("ignore:phantom. findings without a positive")  # in so few
SMALL = {"num_train": 64, "num_val": 64, "num_test": 96}


@pytest.fixture
def trials():
    base = TrainConfig(epochs=1, data_options=SMALL)
    return make_trials(base, {"method": ["equal", "deepchest(floor=0.25)"], "seed": [0, 1]})


def test_a_stopped_study_goes_on_with_the_same_numbers(trials, tmp_path, monkeypatch):
    whole = localize_runs(trials, tmp_path / "whole.csv", per_finding=3, jobs=1)
    first = localize_runs(trials[:2], tmp_path / "parts.csv", per_finding=3, jobs=1)
    pd.testing.assert_frame_equal(first, whole[whole.cell.isin(first.cell)].reset_index(drop=True))
    # a stop between the two files: rows of all are there, records of two
    (tmp_path / "parts.csv").write_bytes((tmp_path / "whole.csv").read_bytes())
    trained, train = [], sweep.train

    def stopped(config, data):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(config.run_dir)
        return train(config, data)

    monkeypatch.setattr(sweep, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        localize_runs(trials, tmp_path / "parts.csv", per_finding=3, jobs=1)
    assert list(pd.read_csv(tmp_path / "parts_cells.csv").cell) == [trial.id for trial in trials[:3]]
    monkeypatch.setattr(sweep, "train", lambda config, data: trained.append(config.run_dir) or train(config, data))
    again = localize_runs(trials, tmp_path / "parts.csv", per_finding=3, jobs=1)
    assert trained == [str(tmp_path / "parts_runs" / trial.id) for trial in trials[2:]]
    pd.testing.assert_frame_equal(again, whole)
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert set(whole.method) == {"equal", "deepchest(floor=0.25)"}
    records = pd.read_csv(tmp_path / "whole_cells.csv")
    assert list(records.columns[:8]) == ["cell", "method", "seed", "cam", "auroc", "layers", "data", "settings"]
    assert {"commit", "torch"} <= set(records.columns)
    assert "status" not in records  # by which `report` tells it from a sweep's
    assert set(records.layers) == {"relu layer1 layer2 layer3"}
    with pytest.raises(ValueError, match=r"whole\.csv has scores of layercam\. Found cam 'gradcam'"):
        localize_runs(trials, tmp_path / "whole.csv", cam="gradcam")
    # a data set of the same name that lies elsewhere has other data, and its trials the same ids
    for path, runs in ((tmp_path / "whole_cells.csv", False), (tmp_path / "parts_runs_cells.csv", True)):
        pd.read_csv(path).assign(data="of before").to_csv(path, index=False)
        if runs:  # as before the records had fingerprints
            pd.read_csv(tmp_path / "parts_cells.csv").drop(columns="data").to_csv(tmp_path / "parts_cells.csv")
        with pytest.raises(ValueError, match=r"\.csv has equal seed 0 on other data than phantom in None now"):
            localize_runs(trials, path.with_name(f"{path.name.partition('_')[0]}.csv"), per_finding=3, jobs=1)


def test_committed_tables_are_added_to(trials, tmp_path):
    """Whose runs have no folders."""
    localize_runs(trials[:1], tmp_path / "x.csv", per_finding=2, jobs=1)
    for path in tmp_path.glob("x_runs*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    localize_runs(trials[:2], tmp_path / "x.csv", per_finding=2, jobs=1)
    assert list(pd.read_csv(tmp_path / "x_runs_cells.csv").cell) == [trials[1].id]
    assert set(read_localization(tmp_path / "x.csv").cell) == {trials[0].id, trials[1].id}


def test_a_run_that_fails_is_named_and_the_others_stay(trials, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sweep, "train", lambda config, data, train=sweep.train: train(config, data if config.seed else None)
    )
    monkeypatch.setattr("deepchest_utils.training.loop.load_dataset", lambda *args, **options: 1 / 0)
    with pytest.raises(ValueError, match=r"2 of 3 runs failed. equal seed 0: ZeroDivisionError"):
        localize_runs(trials[:3], tmp_path / "x.csv", per_finding=2, jobs=1)
    assert set(read_localization(tmp_path / "x.csv").cell) == {trials[2].id}


def test_data_without_regions_are_refused_before_anything_is_trained(tmp_path, monkeypatch, nih_folder):
    monkeypatch.setattr("deepchest_utils.studies.localization.run_sweep", lambda *given: pytest.fail("it trains"))
    (root := nih_folder()).joinpath("BBox_List_2017.csv").unlink(missing_ok=True)
    for settings, said in (
        ({"dataset": "chestmnist", "data_root": str(tmp_path)}, "dataset should be .* no other has regions"),
        ({"dataset": "phantom", "split": "image"}, "split='image'"),
        ({"dataset": "nih", "data_root": str(root)}, r"BBox_List_2017\.csv: no such file"),
    ):
        with pytest.raises(ValueError, match=said):
            localize_runs(make_trials(TrainConfig(**settings), {"seed": [0]}), tmp_path / "out.csv", jobs=1)


def test_two_studies_of_one_table_are_not_at_work_at_once(trials, tmp_path, monkeypatch):
    refused, train = [], sweep.train

    def second(config, data):
        with pytest.raises(ValueError, match=rf"another study is at work in {tmp_path}/x\. Wait for it") as error:
            localize_runs(trials[1:2], tmp_path / "x.csv", per_finding=2, jobs=1)
        refused.append(error)
        return train(config, data)

    monkeypatch.setattr(sweep, "train", second)
    localize_runs(trials[:1], tmp_path / "x.csv", per_finding=2, jobs=1)
    assert len(refused) == 1
    assert set(read_localization(tmp_path / "x.csv").cell) == {trials[0].id}


def test_a_file_that_is_no_study_is_refused(trials, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv has no column 'cell'"):
        localize_runs(trials[:1], tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"cam should be one of gradcam.*'saliency'"):
        localize_runs(trials[:1], tmp_path / "new.csv", cam="saliency")
    with pytest.raises(ValueError, match=r"nothing\.csv: no such table"):
        read_localization(tmp_path / "nothing.csv")


def made(rng, shift, seeds=5, images=60):
    """A table as `read_localization` gives it, where method b lies `shift` above method a in every image, with a shift of
    each seed's own and much that image and patient decide."""
    of_image = rng.random(images)
    rows = []
    for seed in range(seeds):
        of_seed = rng.normal(0, 0.01)
        for method, more in (("a", 0.0), ("b", shift + of_seed)):
            for i in range(images):
                finding = "Mass" if i % 2 else "Nodule"
                rows.append([f"t/{i}", finding, i // 3, of_image[i] + more, method, seed])
    return pd.DataFrame(rows, columns=["image", "finding", "patient", "energy", "method", "seed"])


def test_paired_differences_find_a_small_shift():
    rng = np.random.default_rng(0)
    found = compare_localization(made(rng, 0.05), "a", "energy", np.random.default_rng(1))
    assert found.finding.tolist() == ["Mass", "Nodule", "macro"]
    assert set(found.method) == {"b"}
    assert (found.low < 0.05).all()
    assert (found.high > 0.05).all()
    assert (found.low > 0.02).all()  # images alone differ by 0.3: only the pairing can see it
    assert (found.p_holm < 0.05).all()
    assert (found.p_holm >= found.p).all()
    none = compare_localization(made(rng, 0.0), "a", "energy", np.random.default_rng(1))
    assert (none.p_holm > 0.05).all()


def test_wrong_requests_are_refused():
    rng = np.random.default_rng(0)
    table = made(rng, 0.0)
    with pytest.raises(ValueError, match=r"score should be one of pointing, .*'accuracy'"):
        compare_localization(table, "a", "accuracy", rng)
    with pytest.raises(ValueError, match=r"baseline should be one of two methods or more, a, b. Found 'c'"):
        compare_localization(table, "c", "energy", rng)
    partial = table[(table.method != "a") | (table.seed != 2)]
    with pytest.raises(ValueError, match=r"a should have every seed. Found none for seed 2 of b"):
        compare_localization(partial, "a", "energy", rng)


def test_from_the_command_line(tmp_path, capsys):
    sizes = [word for name, value in SMALL.items() for word in ("--data-options", name, str(value))]
    arguments = ["--method", "equal", "--seed", "0", "--epochs", "1", "--per-finding", "2", "--jobs", "1", *sizes]
    assert main(["localize", *arguments, "--out", str(tmp_path / "x.csv")]) == 0
    shown = capsys.readouterr().out
    assert "1 run in" in shown
    assert "pixel_ap" in shown
    assert "T(IoU) 0.1" in shown
    assert set(pd.read_csv(tmp_path / "x_boxes.csv").method) == {"equal"}
    assert main(["localize", *arguments, "--cam", "saliency", "--out", str(tmp_path / "y.csv")]) == 2
    assert "cam should be one of" in capsys.readouterr().err
