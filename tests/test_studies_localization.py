"""Many runs compared: resumed cell by cell, paired by seed and image, wrong requests refused."""

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import TrainConfig
from deepchest_utils.__main__ import main
from deepchest_utils.studies import localization as study
from deepchest_utils.studies.localization import compare_localization, localize_runs, read_localization
from deepchest_utils.sweep import make_trials

pytestmark = pytest.mark.filterwarnings("ignore:phantom. findings without a positive")  # in so few
SMALL = {"num_train": 64, "num_val": 64, "num_test": 96}


@pytest.fixture
def cells():
    base = TrainConfig(epochs=1, data_options=SMALL)
    return make_trials(base, {"method": ["equal", "deepchest(floor=0.25)"], "seed": [0, 1]})


def test_a_stopped_study_goes_on_with_the_same_numbers(cells, tmp_path, monkeypatch):
    whole = localize_runs(cells, tmp_path / "whole.csv", per_finding=3)
    first = localize_runs(cells[:3], tmp_path / "parts.csv", per_finding=3)
    pd.testing.assert_frame_equal(first, whole[whole.cell.isin(first.cell)].reset_index(drop=True))
    # a stop between the two files: rows of the fourth are there, its record is not
    (tmp_path / "parts.csv").write_bytes((tmp_path / "whole.csv").read_bytes())
    trained = []
    monkeypatch.setattr(
        study, "train", lambda config, data, train=study.train: trained.append(config) or train(config, data)
    )
    again = localize_runs(cells, tmp_path / "parts.csv", per_finding=3)
    assert trained == [cells[3].config]
    pd.testing.assert_frame_equal(again, whole)
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert set(whole.method) == {"equal", "deepchest(floor=0.25)"}
    records = pd.read_csv(tmp_path / "whole_cells.csv")
    assert {"settings", "commit", "torch", "auroc", "layers", "cam", "seconds"} <= set(records.columns)
    assert set(records.layers) == {"relu layer1 layer2 layer3"}


def test_a_file_that_is_no_study_is_refused(cells, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv has no column 'cell'"):
        localize_runs(cells[:1], tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"cam should be one of gradcam.*'saliency'"):
        localize_runs(cells[:1], tmp_path / "new.csv", cam="saliency")
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
    arguments = ["--method", "equal", "--seed", "0", "--epochs", "1", "--per-finding", "2", *sizes]
    assert main(["localize", *arguments, "--out", str(tmp_path / "x.csv")]) == 0
    shown = capsys.readouterr().out
    assert "1 runs in" in shown
    assert "pixel_ap" in shown
    assert main(["localize", *arguments, "--cam", "saliency", "--out", str(tmp_path / "y.csv")]) == 2
    assert "cam should be one of" in capsys.readouterr().err
