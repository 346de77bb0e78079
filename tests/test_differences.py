"""Paired differences that one chooses: what is drawn is what the summary says, with the summary's own correction."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ipywidgets.widgets import widget

from deepchest_utils.notebook import controls
from deepchest_utils.results.labels import method_label
from deepchest_utils.studies.comparison import difference_panels, explore_differences

PCGRAD = 'pcgrad(level="features")'
METHODS = ("equal", "deepchest", "uncertainty", PCGRAD)
TASKS = ("Mass", "Hernia", "Nodule", "Edema", "macro", "common", "rare")


@pytest.fixture(autouse=True)
def close_figures():
    # where `get_title` looks, whatever style a test before has set
    with plt.rc_context({"axes.titlelocation": "center"}):
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def summary() -> pd.DataFrame:
    """As `compare_methods` makes it. Under Nodule DeepChest's own p is 0.0075, but corrected it is not significant."""
    rng, rows = np.random.default_rng(0), []
    for baseline in ("itself", "equal", "deepchest"):
        for method in (m for m in METHODS if m != baseline):
            for metric in ("auroc", "average_precision"):
                for task in TASKS:
                    mean, half = rng.normal(0, 0.02), rng.uniform(0.01, 0.03)
                    low, high = mean - half, mean + half
                    seeds = 2 if method == PCGRAD else 5
                    t = {("deepchest", "Nodule"): 5, ("deepchest", "Mass"): 50}.get((method, task), 1)
                    seed_sd = abs(mean) / t * seeds**0.5  # of the paired t-test
                    rows.append((method, baseline, metric, seeds, task, mean, low, high, 0.5, seed_sd, np.nan, 1.0))
    columns = [
        "method",
        "baseline",
        "metric",
        "seeds",
        "task",
        "mean",
        "low",
        "high",
        "p",
        "seed_sd",
        "patient_sd",
        "p_holm",
    ]
    return pd.DataFrame(rows, columns=columns)


def visible(fig) -> list:
    return [ax for ax in fig.axes if ax.get_visible()]


def dots(ax) -> dict[str, tuple[float, bool]]:
    """Row -> (value of its dot, whether it is full)."""
    names = [label.get_text() for label in ax.figure.axes[0].get_yticklabels()]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 1 and np.isfinite(line.get_xdata()[0])]
    rows = [names[len(names) - 1 - round(line.get_ydata()[0])] for line in lines]  # the lowest has y = 0
    return {
        row: (line.get_xdata()[0], line.get_markerfacecolor() != "white") for row, line in zip(rows, lines, strict=True)
    }


def test_dots_are_the_differences_of_the_summary(summary):
    fig = difference_panels(summary, "average_precision", "equal", ["Mass", "macro"], ["deepchest", PCGRAD])
    assert [ax.get_title() for ax in visible(fig)] == ["Mass", "Mean of all findings"]
    for ax, task in zip(visible(fig), ("Mass", "macro"), strict=True):
        chosen = (summary.baseline == "equal") & (summary.metric == "average_precision")
        rows = summary[chosen & (summary.task == task)]
        wanted = rows.set_index("method")["mean"]
        found = dots(ax)
        assert found["DeepChest"][0] == wanted["deepchest"]
        assert found["PCGrad (features) (2 seeds)"][0] == wanted[PCGRAD]
    assert fig.get_supxlabel() == "average precision minus that of Equal, 95% interval"


def test_a_small_choice_makes_no_dot_full(summary):
    """The correction is that of everything that could have been chosen."""
    fig = difference_panels(summary, "auroc", "equal", ["Nodule", "Mass"], ["deepchest"])
    nodule, mass = visible(fig)
    assert not dots(nodule)["DeepChest"][1]
    assert dots(mass)["DeepChest"][1]


def test_the_baseline_has_an_empty_row(summary):
    fig = difference_panels(summary, "auroc", "equal", ["Mass"], ["equal", "deepchest"])
    (ax,) = visible(fig)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Equal", "DeepChest"]
    assert [*dots(ax)] == ["DeepChest"]


def test_panels_share_a_scale_that_few_seeds_do_not_set(summary):
    wide = summary.copy()
    wide.loc[wide.method == PCGRAD, ["low", "high"]] = (-5.0, 5.0)
    fig = difference_panels(wide, "auroc", "equal", TASKS, METHODS)
    assert len(visible(fig)) == len(TASKS)
    limits = {ax.get_xlim() for ax in visible(fig)}
    ((low, high),) = limits
    assert -0.3 < low < 0 < high < 0.3
    bottom = [ax for ax in visible(fig) if any(label.get_visible() for label in ax.get_xticklabels())]
    assert len(bottom) == 3  # the lowest of each column has its numbers


def test_headless_shows_the_chosen_against_the_first_baseline(summary):
    fig = explore_differences({"phantom": summary}, TASKS[:4], ["Hernia", "macro"], ["deepchest", "no_such_method"])
    assert [ax.get_title() for ax in visible(fig)] == ["Mean of all findings", "Hernia"]
    assert [*dots(visible(fig)[0])] == ["DeepChest"]
    assert "minus that of Equal" in fig.get_supxlabel()


def test_every_choice_of_the_controls_can_be_drawn(summary, monkeypatch):
    monkeypatch.setattr(controls, "is_interactive", lambda: True)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda item, raw=False: shown.append(item))
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    assert explore_differences({"phantom": summary}, TASKS[:4], ["Hernia"]) is None
    model = shown[-1]["application/vnd.jupyter.widget-view+json"]["model_id"]
    choices, lists, _ = widget._instances[model].children
    (metric, baseline), (findings, methods) = choices.children, lists.children
    assert findings.value == ("Hernia",)
    assert methods.value == tuple(method_label(m) for m in METHODS)
    for control in (metric, baseline):
        for option in control.options:
            control.value = option
    findings.value, methods.value = findings.options, methods.options[:1]
    fig = drawn[-1]
    assert len(visible(fig)) == len(TASKS)
    assert "average precision minus that of DeepChest" in fig.get_supxlabel()
