"""Notebook 00 against independent truths: TorchJD's aggregators, closed forms, brute force, and its own printed numbers."""

import re
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from torch import Tensor
from torchjd._linalg import QuadprogProjector
from torchjd.aggregation import IMTLG, MGDA, CAGrad, NashMTL, PCGrad, UPGrad

from deepchest_utils.notebook.runner import FOLDER

PATH = FOLDER / "00_two_tasks_in_a_plane.ipynb"
CELLS = nbformat.read(PATH, as_version=4).cells
TEXT = " ".join(" ".join(cell.source.split()) for cell in CELLS if cell.cell_type == "markdown")
GRADIENT_METHODS = ("mgda", "pcgrad", "upgrad", "cagrad", "nash_mtl")


@pytest.fixture(scope="module", autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def plane(double) -> dict:
    """The names that the notebook's cells tagged "method" define."""
    names: dict = {"torch": torch}
    for cell in CELLS:
        if "method" in cell.metadata.get("tags", []):
            exec(cell.source, names)
    return names


def step(plane: dict, name: str, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
    g1, g2 = jacobian
    w1, w2 = plane[name](g1, g2, torch.ones(2) if losses is None else losses)
    assert (w1 >= 0).all()
    assert (w2 >= 0).all()
    return w1 * g1 + w2 * g2


def directions(number: int = 40) -> list[Tensor]:
    """Pairs of gradients in the plane and in 30 dimensions, of lengths up to 100 to 1, agreeing and conflicting."""
    generator = torch.Generator().manual_seed(0)
    sizes = [2, 30] * (number // 2)
    pairs = [torch.randn(2, size, generator=generator) for size in sizes]
    scales = [10 ** (2 * torch.rand(2, 1, generator=generator) - 1) for _ in sizes]
    return [pair * scale for pair, scale in zip(pairs, scales, strict=True)]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")  # cvxpy, of Nash-MTL
@pytest.mark.parametrize(
    ("name", "aggregator", "tolerance"),
    [
        ("mgda", lambda: MGDA(epsilon=1e-12, max_iters=2000), 2e-2),  # TorchJD's converges like 1/iterations
        ("pcgrad", PCGrad, 1e-9),
        ("upgrad", lambda: UPGrad(projector=QuadprogProjector(norm_eps=0, reg_eps=1e-12)), 1e-6),
        ("cagrad", lambda: CAGrad(c=0.5), 5e-3),  # a grid of 1,001 mixtures
        ("nash_mtl", lambda: NashMTL(n_tasks=2, optim_niter=50, max_norm=0.0), 1e-4),
        ("nash_mtl", IMTLG, 1e-6),  # for two tasks one direction, the bisector
    ],
)
def test_directions_are_those_of_torchjd(plane, name, aggregator, tolerance):
    pairs = directions()
    conflicts = sum(bool(pair[0] @ pair[1] < 0) for pair in pairs)
    assert 10 < conflicts < 30
    compared = 0
    for pair in pairs:
        cosine = torch.nn.functional.cosine_similarity(pair[0], pair[1], 0)
        if cosine > -0.98:  # the direction of opposite gradients is not defined
            theirs = aggregator()
            direction = theirs(pair)
            if name == "nash_mtl" and isinstance(theirs, NashMTL):
                weights = theirs.weighting(pair)  # its solver gives up on some pairs, with other weights than it sought
                products = weights * (pair @ pair.T @ weights)
                if (products[0] - products[1]).abs() > 1e-3 * products.abs().max():
                    continue
            compared += 1
            off = (unit(step(plane, name, pair)) - unit(direction)).norm()
            assert off < tolerance, (pair, off)
    assert compared > 30


def test_uncertainty_weights_are_where_the_log_variances_come_to_rest(plane):
    losses = torch.tensor([0.3, 20.0])
    v = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([v], max_iter=100, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        total = ((-v).exp() * losses + v).sum()
        total.backward()
        return total

    optimizer.step(objective)
    weights = torch.cat(plane["uncertainty"](torch.ones(2), torch.ones(2), losses))
    torch.testing.assert_close(weights, (-v.detach()).exp(), rtol=1e-4, atol=0)


def test_equal_is_the_mean(plane):
    for pair in directions():
        torch.testing.assert_close(step(plane, "equal", pair), pair.mean(0))


def test_mgda_is_the_nearest_point_and_improves_each_task_by_its_square(plane):
    grid = torch.linspace(0, 1, 20_001)[:, None]
    for pair in directions():
        d = step(plane, "mgda", pair)
        nearest = (grid * pair[0] + (1 - grid) * pair[1]).norm(dim=-1).min()
        torch.testing.assert_close(d.norm(), nearest, rtol=1e-4, atol=1e-9)
        assert (pair @ d >= (1 - 1e-9) * (d @ d)).all()


def test_upgrad_s_projection_is_the_nearest_direction_that_harms_nobody(plane):
    """By brute force over the plane's cone: its two edges, and the gradient itself."""
    for pair in directions()[::2]:  # those in the plane
        projections = []
        for g, other in ((pair[0], pair[1]), (pair[1], pair[0])):
            turned = torch.stack([-other[1], other[0]])
            edges = [side * turned for side in (1, -1) if side * turned @ g >= 0]
            candidates = [(g @ edge) / (edge @ edge) * edge for edge in edges]
            allowed = [p for p in [g, *candidates] if p @ other >= -1e-9 and p @ g >= -1e-9]
            projections.append(min(allowed, key=lambda p: float((p - g).norm())))
        torch.testing.assert_close(step(plane, "upgrad", pair), (projections[0] + projections[1]) / 2)


def test_cagrad_is_the_best_direction_of_its_ball(plane):
    turn = torch.linspace(0, 2 * torch.pi, 20_001)
    circle = torch.stack([turn.cos(), turn.sin()], -1)
    for pair in directions()[::2]:
        mean = pair.mean(0)
        ball = mean + 0.5 * mean.norm() * circle  # the optimum lies on the edge
        best = (ball @ pair.T).min(-1).values.max()
        worst_task = (pair @ step(plane, "cagrad", pair)).min()
        assert worst_task > best - 2e-2 * mean.norm() * pair.norm()


def test_for_equal_lengths_all_methods_take_the_bisector(plane):
    for pair in directions():
        alike = pair / pair.norm(dim=-1, keepdim=True)
        if alike[0] @ alike[1] > -0.99:
            for method in plane["METHODS"].values():
                w1, w2 = method(*alike, torch.ones(2))
                assert abs((w1 / (w1 + w2)).item() - 0.5) < 2e-3


def test_cagrad_lies_between_equal_and_mgda(plane):
    for pair in directions():
        w1, w2 = plane["cagrad"](*pair, torch.ones(2))
        low, high = sorted([0.5, plane["mgda"](*pair, torch.ones(2))[0].item()])
        assert low - 2e-3 <= (w1 / (w1 + w2)).item() <= high + 2e-3


def test_nash_satisfies_its_condition_and_is_blind_to_lengths(plane):
    for pair in directions():
        g1, g2 = pair
        w = torch.cat(plane["nash_mtl"](g1, g2, None))
        if torch.nn.functional.cosine_similarity(g1, g2, 0) > -0.99:
            torch.testing.assert_close(w * (pair @ (w @ pair)), torch.ones(2))
        stretched = torch.stack([5 * g1, 0.1 * g2])
        torch.testing.assert_close(unit(step(plane, "nash_mtl", stretched)), unit(step(plane, "nash_mtl", pair)))


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_methods_take_any_number_of_pairs_at_once(plane, name):
    pairs = torch.stack(directions()[::2])
    w1, w2 = plane[name](pairs[:, 0], pairs[:, 1], torch.ones(len(pairs), 2))
    together = w1 * pairs[:, 0] + w2 * pairs[:, 1]
    torch.testing.assert_close(together, torch.stack([step(plane, name, pair) for pair in pairs]))


def test_only_equal_uncertainty_and_cagrad_can_raise_a_loss(plane):
    raising = dict.fromkeys(("equal", "uncertainty", *GRADIENT_METHODS), 0)
    for pair in directions(200):
        for name in raising:
            raising[name] += bool((pair @ step(plane, name, pair) < -1e-9 * pair.norm() ** 2).any())
    assert raising["equal"] > 20
    assert raising["uncertainty"] > 20
    assert 0 < raising["cagrad"] < raising["equal"]  # its ball may not reach the cone
    assert {name for name, number in raising.items() if number == 0} == {"mgda", "pcgrad", "upgrad", "nash_mtl"}


def test_the_toy_is_that_of_cagrad(plane):
    """Values of the authors' toy.py (github.com/Cranial-XIX/CAGrad), worked out with NumPy, and the lowest mean."""

    def published(x, y):
        bend = np.tanh(-y)
        f1 = np.log(max(abs(0.5 * (-x - 7) - bend), 5e-6)) + 6
        f2 = np.log(max(abs(0.5 * (-x + 3) + bend + 2), 5e-6)) + 6
        g1, g2 = (((-x + side) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20 for side in (7, -7))
        up, down = max(np.tanh(0.5 * y), 0), max(np.tanh(-0.5 * y), 0)
        return [f1 * up + g1 * down, f2 * up + g2 * down]

    for x, y in ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0), (0.3, -0.2), (5.0, 2.5)):
        torch.testing.assert_close(plane["valleys"](torch.tensor([x, y])) - 21, torch.tensor(published(x, y)))
    axis = torch.linspace(-10, 10, 801)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    lowest = grid.reshape(-1, 2)[plane["valleys"](grid).mean(-1).argmin()]
    torch.testing.assert_close(lowest, torch.tensor([0.0, -8.36]), atol=0.03, rtol=0)


def test_in_the_valley_one_gradient_is_long_and_along_it_the_two_nearly_cancel(plane):
    theta = torch.tensor([[-8.5, 7.5], [9.0, 9.0]])
    optimizer, seen = torch.optim.Adam([theta], lr=0.005), []
    for _ in range(3500):
        _, g1, g2 = plane["gradients"](plane["valleys"], theta)
        theta.grad = (g1 + g2) / 2
        optimizer.step()
        seen.append(torch.stack([g1, g2]))
    late = torch.stack(seen[3000:])  # time x task x start x 2
    lengths = late.norm(dim=-1).median(0).values.sort(0).values
    assert (lengths[1] > 7 * lengths[0]).all()
    along = late[..., 1].median(0).values
    assert (along.sum(0).abs() < 0.5 * along.abs().max(0).values).all()
    assert (theta[:, 1] > 1).all()  # still inside


def test_runs_without_the_package(monkeypatch):
    """The file alone, as a smoke test: figures are shown, two of them with ipywidgets' own sliders."""
    for name in ["deepchest_utils", *sys.modules]:
        if name.split(".")[0] == "deepchest_utils":
            monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    boxes = []
    monkeypatch.setattr("ipywidgets.interact", lambda draw, **controls: boxes.append(controls) or draw())
    names: dict = {}
    with plt.rc_context():
        for cell in CELLS:
            if cell.cell_type == "code":
                exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names["smoke"] = True
    assert [list(controls) for controls in boxes] == [["angle", "length_ratio", "loss_ratio"], ["rate"]]


# what the committed notebook says and printed


@pytest.fixture(scope="module")
def printed() -> str:
    outputs = [output for cell in CELLS if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


def test_text_of_the_steps(printed):
    rates = dict(re.findall(r"^(\S.*?) +task 1: ([+-]\d\.\d\d)   task 2", printed, re.MULTILINE))
    assert len(rates) == 6
    assert float(rates["Equal"]) < 0 < min(float(rates[name]) for name in ("MGDA", "PCGrad, UPGrad", "Nash-MTL"))


def test_text_of_the_paths(printed):
    """MGDA and Nash-MTL alone arrive at the small rate; at the large one all do, Equal and CAGrad at the lowest mean."""
    rows = re.findall(r"^(\S.*?) +(\d) of 3, \+ *([\d.]+) +(\d) of 3, \+ *([\d.]+)$", printed, re.MULTILINE)
    assert len(rows) == 6
    arrived = {name: (int(slow), int(fast)) for name, slow, _, fast, _ in rows}
    assert arrived["MGDA"] == arrived["Nash-MTL"] == (3, 3)
    assert arrived["Equal"][0] == 1
    assert {fast for _, fast in arrived.values()} == {3}
    excess = sorted((float(fast), name) for name, _, _, _, fast in rows)
    assert {name for _, name in excess[:2]} == {"Equal", "CAGrad"}


def test_text_of_the_fronts(printed):
    convex = re.search(r"convex +fixed weights: (\d+) of 81 +MGDA: (\d) of 9", printed)
    concave = re.search(r"concave +fixed weights: (\d+) of 81 +MGDA: (\d) of 9", printed)
    assert int(convex[1]) == 81
    assert int(concave[1]) == 0
    assert int(concave[2]) >= 7


def test_text_of_the_noise(printed):
    errors = {
        name: (float(first), float(second))
        for name, first, second in re.findall(
            r"^(\S.*?) +task 1: (\d\.\d\d) \(.*?task 2: (\d\.\d{3})", printed, re.MULTILINE
        )
    }
    assert errors["Uncertainty"][0] < 0.75 * errors["Equal"][0]
    assert errors["Uncertainty"][1] < errors["Equal"][1]
    assert f"is {errors['Equal'][0]}, against {errors['Uncertainty'][0]} with learned weights" in TEXT


def test_text_of_the_units(printed):
    spans = {
        name: (float(a), float(b))
        for name, a, b in re.findall(r"^(.+?) +R2 (\d\.\d\d) +accuracy (\d\.\d\d)$", printed, re.MULTILINE)
    }
    assert spans["from v = log L"][0] < 0.25 * spans["Equal"][0]
    assert spans["from v = log L"][1] < 0.25 * spans["Equal"][1]
    assert spans["from v = log L"][0] < spans["from v = 0"][0]
    assert "the unit moves the mean $R^2$ by {} and the mean accuracy by {}".format(*spans["Equal"]) in TEXT
