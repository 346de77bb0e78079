"""Every method by name: the laws that all of them obey, and one method over another."""

import numpy as np
import pytest
import torch
from torch import nn

from deepchest_utils import METHODS, EpochReport, make_method
from deepchest_utils.losses import masked_bce
from deepchest_utils.weighting import Composed, Equal, Method, Static

K = 4
STATIC = [0.5, 1.0, 0.0, 2.5]


def options(name: str, order=range(K)) -> dict:
    """The options that a method cannot do without, for tasks in this order."""
    return {"values": [STATIC[i] for i in order]} if name == "static" else {}


def make(name: str, order=range(K)) -> Method:
    return make_method(name, num_tasks=K, **options(name, order))


def random_report(rng: np.random.Generator, epoch: int) -> EpochReport:
    def table():
        out = {
            name: torch.from_numpy(rng.random(K))
            for name in ("loss", "accuracy", "auroc", "balanced_accuracy")
        }
        for values in out.values():
            values[rng.random(K) < 0.1] = torch.nan
        return out

    return EpochReport(epoch, torch.from_numpy(rng.uniform(0.01, 0.5, K)), table(), table())


def permuted(report: EpochReport, order) -> EpochReport:
    order = list(order)
    return EpochReport(
        report.epoch,
        report.prevalence[order],
        {name: v[order] for name, v in report.train.items()},
        {name: v[order] for name, v in report.val.items()},
    )


def shared_step(method: Method, order=range(K), missing: int | None = None) -> tuple[torch.Tensor, ...]:
    """Gradients of a tiny trunk and of its heads (rows in the tasks' own order) after one step on a fixed
    batch."""
    generator = torch.Generator().manual_seed(0)
    order = list(order)
    trunk, head = nn.Linear(5, 3).double(), nn.Linear(3, K).double()
    with torch.no_grad():
        for parameter in [*trunk.parameters(), *head.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        head.weight.copy_(head.weight[order])
        head.bias.copy_(head.bias[order])
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    labels = (torch.rand(8, K, generator=generator) < 0.4).float()
    if missing is not None:
        labels[:, missing] = torch.nan
    features = trunk(x).tanh()
    method.backward(masked_bce(head(features), labels[:, order]), features)
    back = np.argsort(order)
    return trunk.weight.grad, head.weight.grad[back], head.bias.grad[back]


# names


def test_names_make_methods_and_the_rest_is_refused_with_the_list():
    for name in METHODS:
        assert isinstance(make(name), Method)
    for wrong in ("nonsense", "", "equal+nonsense", "nonsense+equal", "equal+"):
        with pytest.raises(
            ValueError, match=r"method should be one of equal, static, deepchest, .*Found"
        ) as e:
            make_method(wrong, num_tasks=K)
        assert all(name in str(e.value) for name in METHODS)


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


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("missing", range(K))
def test_task_without_a_label_in_the_batch_gets_no_gradient(name, missing):
    trunk, head, bias = shared_step(make(name), missing=missing)
    assert all(g.isfinite().all() for g in (trunk, head, bias))
    assert (head[missing] == 0).all()
    assert bias[missing] == 0
    assert trunk.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_order_of_the_tasks_does_not_matter(name):
    order = [2, 0, 3, 1]
    one, other = make(name), make(name, order)
    rng = np.random.default_rng(0)
    for epoch in range(1, 6):
        report = random_report(rng, epoch)
        one.end_epoch(report)
        other.end_epoch(permuted(report, order))
        torch.testing.assert_close(other.weights, one.weights[order], rtol=1e-12, atol=0)
    for a, b in zip(shared_step(one), shared_step(other, order), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [*METHODS, "deepchest+deepchest_auroc", "deepchest_loss_trend+equal"])
def test_resumed_method_equals_the_uninterrupted(name):
    rng = np.random.default_rng(1)
    reports = [random_report(rng, epoch) for epoch in range(1, 9)]
    whole, first, second = make(name), make(name), make(name)
    for r in reports:
        whole.end_epoch(r)
    for r in reports[:3]:
        first.end_epoch(r)
    second.load_state_dict(first.state_dict())
    for r in reports[3:]:
        second.end_epoch(r)
    assert torch.equal(second.weights, whole.weights)
    assert torch.equal(second.raw_weights, whole.raw_weights)
    for a, b in zip(shared_step(second), shared_step(whole), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("equal", "static")])
def test_dynamic_methods_move_their_weights(name):
    method, rng = make(name), np.random.default_rng(2)
    before = method.weights.clone()
    for epoch in range(1, 4):
        method.end_epoch(random_report(rng, epoch))
    assert not torch.equal(method.weights, before)


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
    (
        "deepchest+static+deepchest_auroc",
        {"inner_options": {"values": STATIC, "inner_options": {"cap": 3.0}}},
    ),
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


def test_composed_hands_the_features_on():
    seen = []

    class Gradients(Method):
        def backward(self, losses, features=None):
            seen.append((losses, features))

    features = torch.ones(2, 3)
    Composed(Static(K, STATIC), Gradients(K)).backward(torch.ones(K), features)
    losses, found = seen[0]
    assert losses.tolist() == STATIC
    assert found is features


def test_a_name_that_fixes_its_signal_keeps_it():
    with pytest.raises(ValueError, match=r"signal of method 'deepchest_auroc' is fixed to 'auroc'"):
        make_method("deepchest_auroc", 3, signal="accuracy")
