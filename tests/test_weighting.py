"""Every method by name: the laws that all of them obey, and one method over another."""

import io
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from deepchest_utils import METHODS, EpochReport, make_method
from deepchest_utils.config import parse_method
from deepchest_utils.models.losses import count_known, masked_bce
from deepchest_utils.weighting import Composed, Equal, Method, Static
from deepchest_utils.weighting.scalarization import FAMO
from deepchest_utils.weighting.torchjd_adapter import GradientBalancing

K = 4
STATIC = [0.5, 1.0, 0.0, 2.5]
PREVALENCE = torch.tensor([0.02, 0.3, 0.1, 0.05], dtype=torch.float64)

GRADIENT = [n for n, made in METHODS.items() if isinstance(made, type) and issubclass(made, GradientBalancing)]
CASES = [*METHODS, *(f"{name}(level='features')" for name in GRADIENT)]
# weights that only a report moves: what another method may be put under
HELD = [
    n
    for n in METHODS
    if n.split("_")[0] in ("equal", "static", "inverse", "deepchest", "prevalence", "dwa", "dtp", "hedge", "val")
]


def make(spec: str, order=range(K)) -> Method:
    """A method for tasks in this order, told the prevalence as the loop does."""
    name, given = parse_method(spec)
    if name == "static":
        given["values"] = [STATIC[i] for i in order]
    if name == "stch":
        given["warmup"] = 2  # so that few epochs see both of its forms
    method = make_method(name, num_tasks=len(order), **given)
    method.begin(PREVALENCE[list(order)])
    if name == "anneal":
        method.start.fill_(
            2.0
        )  # else these networks, worse than a constant, have learned nothing, which is equal weighting
    return method


def random_report(rng: np.random.Generator, epoch: int, k: int = K) -> EpochReport:
    def table():
        out = {name: torch.from_numpy(rng.random(k)) for name in ("loss", "accuracy", "auroc", "balanced_accuracy")}
        for values in out.values():
            values[rng.random(k) < 0.1] = torch.nan
        return out

    return EpochReport(epoch, torch.from_numpy(rng.uniform(0.01, 0.5, k)), table(), table())


def random_reports(epochs: int, seed: int = 0, k: int = K) -> list[EpochReport]:
    rng = np.random.default_rng(seed)
    return [random_report(rng, epoch, k) for epoch in range(1, epochs + 1)]


def permuted(report: EpochReport, order) -> EpochReport:
    order = list(order)
    return EpochReport(
        report.epoch,
        report.prevalence[order],
        {name: v[order] for name, v in report.train.items()},
        {name: v[order] for name, v in report.val.items()},
    )


def one_step(method: Method, order=None, missing=(), seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Gradients of a tiny trunk and of its heads (rows in the tasks' own order) on a batch that `seed` alone
    decides; then what the method learns in a step."""
    generator, k = torch.Generator().manual_seed(seed), method.num_tasks
    order = list(range(k) if order is None else order)
    trunk, head = nn.Linear(5, 3).double(), nn.Linear(3, k).double()
    with torch.no_grad():
        for parameter in [*trunk.parameters(), *head.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        head.weight.copy_(head.weight[order])
        head.bias.copy_(head.bias[order])
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    labels = (torch.rand(8, k, generator=generator) < 0.4).float()
    labels[:, list(missing)] = torch.nan
    features = trunk(x).tanh()
    losses = masked_bce(head(features), labels[:, order])
    method.backward(losses, features, count_known(labels[:, order]) > 0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter -= parameter.grad / 2
            parameter.grad = None
    if method.needs_losses_after_step:
        method.after_step(losses.detach() * torch.rand(k, generator=generator)[order])
    back = np.argsort(order)
    return trunk.weight.grad, head.weight.grad[back], head.bias.grad[back]


def train_on(method: Method, reports: list[EpochReport], order=None, gaps=True) -> list[torch.Tensor]:
    """Two steps an epoch, one of them without a label of some task if there are `gaps`. Returns the weights that
    the log gets."""
    used = []
    for report in reports:
        torch.manual_seed(report.epoch)  # the state of a run's checkpoint holds torch's own
        for step in range(2):
            missing = (report.epoch % method.num_tasks,) if gaps and step == 0 and method.num_tasks > 1 else ()
            one_step(method, order, missing, seed=10 * report.epoch + step)
        used.append(method.weights.clone())
        method.end_epoch(report if order is None else permuted(report, order))
    return used


def is_finite(method: Method) -> bool:
    return all(v.isfinite().all() for v in (method.weights, method.raw_weights, *method.parameters()))


# names


def test_names_make_methods_and_the_rest_is_refused_with_the_list():
    for name in METHODS:
        assert isinstance(make(name), Method)
    for wrong in ("nonsense", "", "equal+nonsense", "nonsense+equal", "equal+"):
        with pytest.raises(
            ValueError, match=r"method should be one of equal, static, inverse_prevalence, .*Found"
        ) as e:
            make_method(wrong, num_tasks=K)
        assert all(name in str(e.value) for name in METHODS)


@pytest.mark.parametrize(("wrong", "meant"), [("deepchst", "deepchest"), ("equal+pcgradd", "pcgrad")])
def test_misspelt_name_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(ValueError, match=rf"Found {wrong!r}\. Did you mean {meant!r}\?$".replace("+", r"\+")):
        make_method(wrong, num_tasks=K)


@pytest.mark.parametrize(
    ("name", "bad", "named"),
    [
        ("equal", {"floor": 0.1}, "'equal'.*'floor'.*It has none"),
        ("static", {}, "'static'.*values.*It has values"),
        ("deepchest", {"flor": 0.1}, "'deepchest'.*'flor'.*floor"),
        ("deepchest_auroc", {"flor": 0.1}, "'deepchest_auroc'.*'flor'.*floor"),
        ("deepchest", {"inner_options": {"a": 1}}, "inner_options.*'deepchest'"),
        ("deepchest+equal", {"inner_options": {"a": 1}}, "'equal'.*'a'"),
        ("static", {"values": [1.0] * (K + 1)}, r"values.*\(4,\).*\(5,\)"),
        ("static", {"values": [1.0, 1.0, 1.0, -1.0]}, "values.*not negative"),
    ],
)
def test_bad_options_are_named_with_those_there_are(name, bad, named):
    with pytest.raises(ValueError, match=named):
        make_method(name, num_tasks=K, **bad)


@pytest.mark.parametrize("signal", ["loss_trend", "relative_loss", "auroc", "balanced_accuracy"])
def test_variant_names_set_the_signal(signal):
    assert make_method(f"deepchest_{signal}", num_tasks=K).signal == signal


# laws


@pytest.mark.parametrize("name", CASES)
def test_task_without_a_label_in_the_batch_gets_no_gradient(name):
    method = make(name)
    for epochs in (0, 3):  # a new method, and one that has been through its warm-up
        train_on(method, random_reports(epochs))
        for missing in range(K):
            trunk, head, bias = one_step(method, missing=(missing,))
            assert all(g.isfinite().all() for g in (trunk, head, bias))
            assert (head[missing] == 0).all()
            assert bias[missing] == 0
            assert trunk.abs().sum() > 0
            assert is_finite(method)


@pytest.mark.parametrize("name", CASES)
def test_batch_without_any_label_moves_nothing(name):
    method = make(name)
    for epochs in (0, 3):
        train_on(method, random_reports(epochs))
        assert all((g == 0).all() for g in one_step(method, missing=range(K)))
        assert is_finite(method)
        after = one_step(method)
        assert all(g.isfinite().all() for g in after)
        assert after[0].abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_order_of_the_tasks_does_not_matter(name, monkeypatch):
    # two visit the other tasks in an order drawn at random, of two tasks there is one other; LDC-MTL has neighbours
    order = [1, 0] if name.startswith(("pcgrad", "gradvac", "ldc_mtl")) else [2, 0, 3, 1]
    one, other = make(name, range(len(order))), make(name, order)
    reports, randn = random_reports(4, k=len(order)), torch.randn

    def mapped(*size, generator=None, **kind):  # what is drawn for a task goes with the task
        drawn = randn(*size, generator=generator, **kind)
        return drawn[order] if generator is None else drawn

    gaps = not name.startswith("rgw")  # it draws for the tasks in the batch, which are not those of `order`
    used = train_on(one, reports, gaps=gaps)
    torch.manual_seed(0)
    plain = one_step(one)
    monkeypatch.setattr(torch, "randn", mapped)
    torch.manual_seed(0)
    close = {"rtol": 1e-5, "atol": 1e-6}
    for a, b in zip(train_on(other, reports, order, gaps), used, strict=True):
        torch.testing.assert_close(a, b[order], **close)
    torch.manual_seed(0)
    for a, b in zip(one_step(other, order), plain, strict=True):
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("cut", [0, 2])
@pytest.mark.parametrize(
    "name",
    [*CASES, "nash_mtl(update_every=4)", "deepchest+deepchest_auroc", "dwa+famo", "deepchest_loss_trend+gradvac"],
)
def test_resumed_method_equals_the_uninterrupted(name, cut):
    reports = random_reports(4, seed=1)
    whole, first, second = make(name), make(name), make(name)
    expected = train_on(whole, reports)
    train_on(first, reports[:cut])
    train_on(second, reports[2:])  # what it learned before must not show
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(train_on(second, reports[cut:]), expected[cut:], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(second.raw_weights, whole.raw_weights)
    torch.manual_seed(0)
    resumed = one_step(second)
    torch.manual_seed(0)
    for a, b in zip(resumed, one_step(whole), strict=True):
        assert torch.equal(a, b)


# names of buffers that may hold NaN for "not yet known", and of those and of parameters that may be below 0
UNKNOWN = {"first_loss", "previous", "previous_loss", "kappa", "nadir", "base", "running", "start"}
SIGNED = {"_used", "xi", "mean", "logits", "log_variance", "log_scale", "v", "_phi_t", "prvs_alpha"}


def spoilt(state: dict):
    """(name, number, copy of the state with this number in it), for each tensor that can hold it."""
    for key, kept in state.items():
        for name in kept if isinstance(kept, dict) else [None]:
            tensor = torch.as_tensor(kept if name is None else kept[name])
            for value in (torch.nan, torch.inf, -torch.inf, -1.0) if tensor.is_floating_point() else (-1.0,):
                if tensor.dtype != torch.bool and name != "step":  # a count of NashMTL's
                    bad = tensor.clone()
                    bad.view(-1)[-1] = value
                    yield name or key.split(".")[-1], value, {**state, key: {**kept, name: bad} if name else bad}


@pytest.mark.parametrize("name", [*CASES, "dwa+famo", "deepchest+dtp"])
def test_state_that_no_training_leaves_is_refused_and_not_taken_over(name):
    method, other = make(name), make(name)
    train_on(method, random_reports(2))
    state = {key: {**kept} if isinstance(kept, dict) else kept.clone() for key, kept in method.state_dict().items()}
    tensors = {key: kept for key, kept in state.items() if not isinstance(kept, dict)}
    for where, value, bad in spoilt(state):
        if where in {"nan": UNKNOWN, "inf": {"lowest"}, "-inf": set(), "-1.0": SIGNED}[str(value)]:
            other.load_state_dict(bad)
            continue
        with pytest.raises(ValueError, match=r"^\w+.* should be finite.* in a state to load\. Found \[[^\n]*\Z"):
            method.load_state_dict(bad)
        for key, kept in tensors.items():
            torch.testing.assert_close(method.state_dict()[key], kept, rtol=0, atol=0, equal_nan=True)
    method.load_state_dict(state)


@pytest.mark.parametrize("name", ["gradvac", "nash_mtl", "excess_mtl"])
def test_memory_for_another_number_of_tasks_is_refused(name):
    here, there = make(name), make(name, range(K - 1))
    train_on(there, random_reports(2, k=K - 1))
    with pytest.raises(ValueError, match=rf"should begin with shape \({K},.*Found \({K - 1},"):
        here.set_extra_state(there.get_extra_state())


def test_state_of_a_class_from_elsewhere_is_its_own_affair():
    class Scores(Equal):
        def __init__(self, num_tasks: int):
            super().__init__(num_tasks)
            self.register_buffer("scores", torch.zeros(num_tasks))

    method = Scores(K)
    method.load_state_dict({**method.state_dict(), "scores": torch.tensor([-1.0, torch.nan, torch.inf, 1])})
    assert method.scores.tolist()[0] == -1


NEEDED = {  # what a report must have: the score, and of which split
    **dict.fromkeys(("dwa", "stch", "igb", "hedge", "deepchest_loss_trend"), ("loss", "train")),
    **dict.fromkeys(("deepchest", "dtp", "amtl"), ("accuracy", "train")),
    **{f"deepchest_{score}": (score, "train") for score in ("auroc", "balanced_accuracy")},
    "deepchest_relative_loss": ("loss", "train"),
    "val_discount": ("loss", "val"),
    "deepchest(scores_from='val')": ("accuracy", "val"),
    "dtp(signal='auroc', scores_from='val')": ("auroc", "val"),
}


@pytest.mark.parametrize("name", [*METHODS, *(spec for spec in NEEDED if "(" in spec)])
def test_report_without_the_score_that_a_method_learns_from_is_one_clear_line(name):
    method, other = make(name), {"sensitivity": torch.ones(K)}
    start = method.weights.clone()
    reports = [EpochReport(epoch, PREVALENCE, other, other) for epoch in (1, 2)]
    if name not in NEEDED:
        for report in reports:
            method.end_epoch(report)
        return
    score, split = NEEDED[name]
    said = f"EpochReport should have {split}={{'{score}': scores}} for {type(method).__name__}. Found 'sensitivity'."
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        any(method.end_epoch(report) for report in reports)
    assert torch.equal(method.weights, start)


def test_epochs_count_from_one():
    """From 0, IGB's base and STCH's warm-up would be one epoch late."""
    with pytest.raises(ValueError, match=r"^epoch should be at least 1\. Found 0\.$"):
        EpochReport(0, PREVALENCE)


def test_no_two_methods_are_the_same():
    found, reports = {}, random_reports(5, seed=2)
    assert (reports[0].train["accuracy"].argsort() != (1 - reports[0].prevalence).argsort()).any()
    for name in CASES:
        method, trunks = make(name), []
        for report in reports:
            train_on(method, [report])
            torch.manual_seed(0)
            trunks += [one_step(method, seed=2 * report.epoch + step)[0] for step in (0, 1)]  # LBTW's first is equal
        found[name] = torch.stack(trunks)
    same = [pair for pair in combinations(CASES, 2) if torch.allclose(*(found[n] for n in pair), rtol=1e-2)]
    # random weights do not look at the gradients, so that it is the same where they are taken
    assert same == [("rgw", "rgw(level='features')")]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [1, 2])
def test_few_tasks_are_enough(name, k):
    method = make(name, range(k))
    for epochs in (0, 3):
        train_on(method, random_reports(epochs, k=k))
        trunk, head, bias = one_step(method)
        assert all(g.isfinite().all() for g in (trunk, head, bias))
        assert is_finite(method)
        assert trunk.abs().sum() > 0
        if k == 1:  # alone, a task has its own direction
            alone = one_step(Equal(1))[0]
            assert torch.cosine_similarity(trunk.flatten(), alone.flatten(), dim=0) > 1 - 1e-6


@pytest.mark.parametrize("name", CASES)
def test_weights_in_the_log_move_as_the_method_promises(name):
    name, _ = parse_method(name)
    used = torch.stack(train_on(make(name), random_reports(4)))
    if name in ("equal", "graddrop", "config"):  # the last two have no factors for the tasks
        assert (used == 1).all()
    elif name == "static" or name.startswith("inverse"):
        assert (used == used[0]).all()
        assert len(set(used[0].tolist())) == K
    else:
        assert all((column != column[0]).any() for column in used.T)


# equal and static


def test_equal_is_the_plain_sum():
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    method = Equal(K)
    assert method(losses).item() == 15
    method.backward(losses)
    assert losses.grad.tolist() == [1, 1, 1, 1]


def test_static_keeps_its_values_whatever_the_report():
    given = torch.tensor(STATIC, dtype=torch.float64)
    method = Static(K, given)
    given.fill_(9)  # the method has a copy
    method.end_epoch(random_report(np.random.default_rng(0), 1))
    losses = torch.ones(K, requires_grad=True)
    method.backward(losses)
    assert method.weights.tolist() == STATIC
    assert losses.grad.tolist() == STATIC


# one over another

COMPOSED = [
    ("deepchest+equal", {}),
    ("deepchest+deepchest_auroc", {"inner_options": {"step_up": 1.3, "normalize": True}}),
    ("static+deepchest", {"values": STATIC, "inner_options": {"initial": [0.5, 0.6, 0.7, 0.8]}}),
    ("deepchest+static+deepchest_auroc", {"inner_options": {"values": STATIC, "inner_options": {"cap": 3.0}}}),
]


@pytest.mark.parametrize(("name", "given"), COMPOSED)
def test_composed_gradient_is_the_product_of_the_weights(name, given):
    method, rng = make_method(name, num_tasks=K, **given), np.random.default_rng(0)
    parts = [make_method(name.split("+")[0], K, **{n: v for n, v in given.items() if n != "inner_options"})]
    rest = given
    for part in name.split("+")[1:]:
        rest = rest.get("inner_options", {})
        parts.append(make_method(part, K, **{n: v for n, v in rest.items() if n != "inner_options"}))
    for epoch in range(1, 5):
        report = random_report(rng, epoch)
        for m in (method, *parts):
            m.end_epoch(report)
    product = torch.stack([p.weights for p in parts]).prod(0)
    losses = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64, requires_grad=True)
    method.backward(losses * 1)
    torch.testing.assert_close(losses.grad, product, rtol=1e-14, atol=0)
    torch.testing.assert_close(method.weights, product, rtol=1e-14, atol=0)
    assert len(set(product.tolist())) > 1


@pytest.mark.parametrize(("name", "given"), COMPOSED)
def test_composed_state_dict_holds_both(name, given):
    method, copy = (make_method(name, num_tasks=K, **given) for _ in range(2))
    rng = np.random.default_rng(3)
    for epoch in range(1, 4):
        method.end_epoch(random_report(rng, epoch))
    assert not torch.equal(copy.weights, method.weights)
    copy.load_state_dict(method.state_dict())
    last = random_report(rng, 4)
    for m in (method, copy):
        m.end_epoch(last)
    assert torch.equal(copy.weights, method.weights)


def test_composed_needs_a_loss_weighting_outside_and_one_number_of_tasks():
    class Gradients(Method):
        """Stands for a method that works on gradients: it has no weights to multiply with."""

    # where types are checked, as in these tests, the annotation refuses it before the class does
    with pytest.raises((ValueError, TypeError), match=r"(?s)outer.*Gradients"):
        Composed(Gradients(K), Equal(K))
    with pytest.raises(ValueError, match=r"num_tasks.*4 and 3"):
        Composed(Equal(K), Equal(3))
    assert isinstance(Composed(Equal(K), Gradients(K)), Method)

    class Stepwise(Equal):  # its own scalar would never be asked
        def forward(self, losses, mask=None):
            return losses.prod()

    with pytest.raises(ValueError, match=r"outer should be .*Found Stepwise"):
        Composed(Stepwise(K), Equal(K))


@pytest.mark.parametrize("name", METHODS)
def test_outer_is_a_method_that_holds_its_weights_over_an_epoch(name):
    given = {"values": STATIC} if name == "static" else {}
    if name in HELD:
        assert isinstance(make_method(f"{name}+mgda", K, **given), Composed)
    else:
        with pytest.raises((ValueError, TypeError), match=r"(?s)outer.*" + METHODS[name].__name__):
            make_method(f"{name}+equal", K)


@pytest.mark.parametrize("inner", [n for n in METHODS if n not in HELD])
def test_composed_step_is_the_inner_one_on_weighted_losses(inner):
    class Weighted(Method):
        def backward(self, losses, features=None, mask=None):
            alone.backward(losses * torch.tensor(STATIC), features, mask)

    alone = make(inner)
    torch.manual_seed(0)
    expected = one_step(Weighted(K))
    composed = Composed(Static(K, STATIC), make(inner))
    torch.manual_seed(0)
    for a, b in zip(one_step(composed), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    torch.testing.assert_close(composed.weights, torch.tensor(STATIC).double() * alone.weights)


def test_composed_tells_the_inner_one_all_that_it_is_told():
    inner, alone = FAMO(K), FAMO(K)
    method = Composed(make_method("inverse_prevalence", K), inner)
    assert method.needs_losses_after_step
    assert not Composed(Equal(K), Equal(K)).needs_losses_after_step
    method.begin(PREVALENCE)
    before, after = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True), torch.tensor([0.5, 2.0, 2.5, 1.0])
    weights = make("inverse_prevalence").weights.float()
    method.backward(before)
    method.after_step(after)
    alone.backward(before * weights)
    alone.after_step(after * weights)
    assert torch.equal(inner.xi, alone.xi)
    assert (inner.xi != 0).all()


def test_composed_hands_features_and_mask_on():
    seen = []

    class Gradients(Method):
        def backward(self, losses, features=None, mask=None):
            seen.append((losses, features, mask))

    features = torch.ones(2, 3)
    Composed(Static(K, STATIC), Gradients(K)).backward(torch.ones(K), features, torch.tensor([True, False, True, True]))
    losses, found, mask = seen[0]
    assert losses.tolist() == [STATIC[0], 0, *STATIC[2:]]
    assert found is features
    assert mask.tolist() == [True, False, True, True]


def test_a_name_that_fixes_its_signal_keeps_it():
    with pytest.raises(ValueError, match=r"signal of method 'deepchest_auroc' is fixed to 'auroc'"):
        make_method("deepchest_auroc", 3, signal="accuracy")
    with pytest.raises(ValueError, match=r"values of method 'inverse_prevalence' is fixed"):
        make_method("inverse_prevalence", 3, values=[1.0, 1.0, 1.0])
