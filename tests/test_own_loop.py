"""Methods in loops that are not the package's: losses as people have them, masks, autocast, several processes, and the
snippets of the package's README."""

import copy
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from deepchest_utils import METHODS, DeepChest, EpochReport, TrainConfig, make_method, train
from deepchest_utils.config import parse_method
from deepchest_utils.weighting import LossWeighting, check_method

NAN = float("nan")
K = 3
WEIGHTINGS = [n for n in METHODS if n != "static" and isinstance(make_method(n, K), LossWeighting)]
BALANCING = [n for n in METHODS if n not in (*WEIGHTINGS, "static")]
# those whose formula takes a root, a logarithm or a ratio of losses, or has no minimum below zero
POSITIVE = {
    "uncertainty", "gls", "imtl_l", "stch", "famo", "dbmtl_l", "anneal", "amtl", "uw_so", "lbtw", "igb", "gradnorm",
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "deepchest_utils" / "README.md").read_text()
IN_OTHER_LOOPS = README.split("## In other loops")[1].split("\n## ")[0]
ANY, LIGHTNING, LIBMTL, ACCUMULATE = re.findall(r"```python\n(.*?)```", IN_OTHER_LOOPS, re.DOTALL)


def made(num_tasks: int = K) -> DeepChest:
    """A rule whose weights differ."""
    weighting = DeepChest(num_tasks)
    for epoch in range(4):
        weighting.update(torch.linspace(0.1, 1, num_tasks).roll(epoch % 2))
    return weighting


# what a loss may be


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("kind", [list, tuple])
def test_list_of_losses_is_the_tensor_of_them(name, kind):
    values, results = [0.7, 0.2, 0.5], []
    for make in (torch.stack, kind):
        torch.manual_seed(0)
        leaves = [torch.tensor(v, requires_grad=True) for v in values]
        make_method(name, K)(make(leaves)).backward()
        results.append([leaf.grad.item() for leaf in leaves])
    assert results[0] == results[1]
    assert any(results[0])


@pytest.mark.parametrize("name", ["deepchest", "uncertainty", "deepchest+gls", "gradnorm", "mgda"])
@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (torch.tensor(0.5), r"shape \(3,\), one loss a task\. Found shape \(\): take reduction='none'"),
        (
            torch.ones(8, 3),
            r"Found shape \(8, 3\): take reduction='none' and the mean over images, losses\.mean\(0\)\.$",
        ),
        (torch.ones(4), r"Found shape \(4,\)\.$"),
        (torch.ones(3, 1), r"Found shape \(3, 1\)\.$"),
        ([torch.tensor(0.5)] * 2, r"Found shape \(2,\)\.$"),
        ([], r"Found shape \(0,\)\.$"),
    ],
)
def test_losses_of_another_shape_are_one_clear_error(name, losses, said):
    with pytest.raises(ValueError, match=said):
        make_method(name, K).backward(losses, torch.ones(8, 4, requires_grad=True) * 1)
    if name in ("deepchest", "uncertainty"):
        with pytest.raises(ValueError, match=said):
            make_method(name, K)(losses)


def test_mask_of_another_shape_or_type_is_one_clear_error():
    for wrong in (torch.tensor([True]), torch.tensor([[True] * K])):
        with pytest.raises(ValueError, match=r"mask should have shape \(3,\) and type torch.bool"):
            DeepChest(K)(torch.ones(K), wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*WEIGHTINGS, "deepchest+rlw"])
def test_under_autocast_losses_and_weights_stay_what_they_are(name, dtype):
    losses, results = torch.tensor([0.7012, 0.2034, 0.5056]), []
    for enabled in (False, True):
        torch.manual_seed(0)
        method, leaf = make_method(name, K), losses.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            method.backward(leaf)
            results.append([leaf.grad, *([method(losses)] if isinstance(method, LossWeighting) else [])])
    for plain, cast in zip(*results, strict=True):
        assert cast.dtype == torch.float32
        assert torch.equal(plain, cast)


@pytest.mark.parametrize("name", BALANCING)
def test_under_autocast_gradients_are_balanced_in_full(name):
    results, x = [], torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for enabled in (False, True):
        torch.manual_seed(0)
        trunk, head, method = nn.Linear(4, 5), nn.Linear(5, K), make_method(name, K)
        features = trunk(x).tanh()
        losses = (head(features) ** 2).mean(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            method.backward(losses, features)
        results.append(torch.cat([p.grad.flatten() for p in (*trunk.parameters(), *head.parameters())]))
    assert torch.equal(*results)


OUTSIDE_THE_CHECKS = """
import numpy as np, torch
from deepchest_utils import DeepChest, make_method

for weighting in (DeepChest(3, initial=[0.5, 1.0, 1.25]), make_method("gls", 3), make_method("uncertainty", 3)):
    @torch.compile(backend="eager", fullgraph=True)
    def step(losses):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return weighting(losses)
    losses = torch.tensor([0.1, 0.2, 0.4])
    assert torch.equal(step(losses), weighting(losses))
    if isinstance(weighting, DeepChest):
        weighting.update([0.0, 0.5, 1.0])
        assert torch.equal(step(losses), weighting(losses))
        assert torch.equal(torch.vmap(weighting)(losses.expand(4, 3)), weighting(losses).expand(4))
        assert weighting.to("meta")(losses.to("meta")).shape == ()
make_method("deepchest(floor=0, cap=2)", 3)
DeepChest(3, cap=np.float32(2), floor=np.int64(1), normalize=True)
make_method("anneal", num_tasks=np.int64(3), window=np.int64(5))

rule, losses = DeepChest(3, initial=[0.5, 1, 1.5]), torch.tensor([0.7, 0.2, 0.5])
assert rule([0.7, 0.2, 0.5], [True, False, True]) == rule(losses, torch.tensor([True, False, True])) != rule(losses)
assert rule(np.array([0.7, 0.2, 0.5], np.float32)) == rule(losses)
for call, said in {
    lambda: rule({0.7, 0.2, 0.5}): "losses should be a tensor or a list, one loss a task in order. Found a set.",
    lambda: make_method(None, 3): "name should be of type str. Found None.",
    lambda: rule.update([0.1, 0.2, 0.3], counts="many"): "counts should be 3 numbers, one a task in order. Found 'many'.",
    lambda: make_method("anneal", 3).begin([0.1, 0.2, 0.3]):
        "prevalence should be a tensor of shape (K,), shares between 0 and 1. Found [0.1, 0.2, 0.3].",
    lambda: make_method("anneal", 3).begin(torch.tensor([0.25])): "prevalence should have shape (3,). Found (1,).",
    lambda: rule.begin(torch.tensor([0.25])): "prevalence should have shape (3,). Found (1,).",
    lambda: rule.begin(torch.tensor([10.0, 20.0, 30.0])):
        "prevalence should be a tensor of shape (K,), shares between 0 and 1. Found tensor([10., 20., 30.]).",
    lambda: rule("abc"): "losses should be a tensor or a list, one loss a task in order. Found a str.",
    lambda: rule([1, 2, 3]): "losses should be of a floating type. Found torch.int64.",
    lambda: rule([losses, losses[0], losses[1]]): "losses should be one number a task. Found shapes [(3,), (), ()].",
    lambda: rule.update("123"): "scores should be 3 numbers, one a task in order. Found '123'.",
    lambda: rule.end_epoch(losses): "end_epoch takes an EpochReport; a score a task goes to update. Found Tensor.",
    lambda: rule.backward(losses): "losses should have a gradient. Found none: they are detached, or made in no_grad.",
    lambda: make_method("mgda", 3).backward(losses, (losses,)):
        "features should be one tensor, (B, F). Found a tuple: take its last part.",
    lambda: make_method("static", 3, values={0: 1}): "values should be 3 numbers, one a task in order. Found {0: 1}.",
    lambda: DeepChest(3, initial=["a", "b", "c"]):
        "initial should be 3 numbers, one a task in order. Found ['a', 'b', 'c'].",
    lambda: DeepChest(3, cap=float("inf")): "cap should be a finite number. Found inf.",
}.items():
    try:
        call()
    except ValueError as error:
        assert str(error) == said, error
    else:
        raise AssertionError(said)
"""


def test_loss_is_compiled_in_one_graph_and_numpy_s_numbers_are_numbers():
    subprocess.run([sys.executable, "-c", OUTSIDE_THE_CHECKS], check=True, cwd=ROOT)


# losses below zero, and tasks that are not there


def two_layers(name: str, shift: float, mask: torch.Tensor | None = None, spoil: float = 0.0) -> torch.Tensor:
    """Gradients of a tiny trunk and its heads, of losses moved by a number that has no gradient; `spoil` is added to the
    losses outside of the mask."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    trunk, head = nn.Linear(4, 5).double(), nn.Linear(5, K).double()
    features = trunk(torch.randn(6, 4, generator=generator, dtype=torch.float64)).tanh()
    losses = ((head(features) - torch.tensor([1.0, 0.0, -2.0])) ** 2).mean(0) + shift
    if mask is not None:
        losses = losses + torch.where(mask, 0.0, spoil)
    torch.manual_seed(1)
    make_method(name, K).backward(losses, features, mask)
    return torch.cat([p.grad.flatten() for p in (*trunk.parameters(), *head.parameters())])


@pytest.mark.parametrize("name", [n for n in METHODS if n not in POSITIVE and n != "static"])
def test_loss_below_zero_counts_as_any_other(name):
    """A Gaussian likelihood's logarithm has no sign: moved below zero, the same gradients, none of them left out."""
    below = two_layers(name, -100.0)
    if name != "ldc_mtl":  # whose penalty is of the losses themselves
        torch.testing.assert_close(below, two_layers(name, 0.0), rtol=1e-9, atol=1e-9)
    assert below.isfinite().all()
    assert (below.view(-1)[-K:] != 0).all()  # the bias of every task's head


@pytest.mark.parametrize("name", sorted(POSITIVE))
def test_loss_below_zero_is_refused_where_the_formula_has_no_sense(name):
    with pytest.raises(ValueError, match=rf"{METHODS[name].__name__} needs losses that are not negative, .*Found \[-"):
        two_layers(name, -100.0)


@pytest.mark.parametrize(
    ("name", "split"),
    [("dwa", "train"), ("hedge", "train"), ("val_discount", "val"), ("deepchest_loss_trend", "train")],
)
def test_epoch_s_loss_below_zero_is_refused_where_it_would_have_been_no_loss(name, split):
    report = EpochReport(1, torch.full((K,), 0.3), **{split: {"loss": torch.tensor([0.5, -0.5, NAN])}})
    with pytest.raises(ValueError, match="needs losses that are not negative"):
        make_method(name, K).end_epoch(report)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "static"])
@pytest.mark.parametrize("spoil", [5.0, -500.0, NAN])
def test_what_the_loss_of_an_absent_task_is_does_not_matter(name, spoil):
    mask = torch.tensor([True, False, True])
    expected = two_layers(name, 0.0, mask)
    assert torch.equal(two_layers(name, 0.0, mask, spoil), expected)
    assert expected[-2] == 0  # its head's bias
    assert (expected[[-3, -1]] != 0).all()


@pytest.mark.parametrize("name", ["gls", "stch", "dbmtl_l", "famo", "igb", "amtl"])
def test_loss_that_has_underflowed_is_there_and_leaves_the_gradients_finite(name):
    """float32 has a cross-entropy of 0 for a logit below -17 without the finding."""
    logits = torch.tensor([[-0.5, -30.0, 0.2]], requires_grad=True)
    losses = binary_cross_entropy_with_logits(logits, torch.zeros(1, K), reduction="none").mean(0)
    assert losses[1] == 0
    make_method(name, K).backward(losses)
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, [0, 2]] > 0).all()
    if name == "gls":  # the geometric mean of three, the second as 1e-8
        mean = (losses[0] * 1e-8 * losses[2]) ** (1 / 3)
        assert make_method(name, K)(losses.detach()).item() == pytest.approx(mean.item(), rel=1e-5)


# what hides from a rule what it needs


def compiled(*modules: nn.Module):
    """All of them as one function, as torch.compile makes it, without a compiler."""
    return torch.compile(lambda x: [x := m(x) for m in modules], backend="aot_eager")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # a test makes it an error, inside the compiler
@pytest.mark.parametrize("name", BALANCING)
def test_compiled_trunk_and_heads_are_refused_in_one_function_and_taken_apart(name):
    trunk, head, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)), nn.Linear(6, K), torch.randn(7, 4)
    features, logits = compiled(trunk, head)(x)
    with pytest.raises(ValueError, match="compile"):
        make_method(name, K).backward((logits**2).mean(0), features)
    assert trunk[0].weight.grad is None
    gradients = []
    for apart in (nn.Identity(), compiled(head)):
        features = trunk(x) if name == "gradnorm" or not gradients else compiled(trunk)(x)[0]
        (logits,) = apart(features) if gradients else [head(features)]
        torch.manual_seed(0)
        make_method(name, K).backward((logits**2).mean(0), features)
        gradients.append([p.grad.clone() for p in (*trunk.parameters(), *head.parameters())])
        trunk.zero_grad()
        head.zero_grad()
    if name != "graddrop":  # whose draws come later than the compiler's
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_loss_for_validation_teaches_nothing(name):
    rule, losses = make_method(name, K), torch.tensor([0.7, 0.2, 0.5])
    rule.backward(losses.clone().requires_grad_())
    before = copy.deepcopy(rule.state_dict())
    with torch.no_grad():
        value = rule(losses * 2)
    assert value.isfinite()
    torch.testing.assert_close(rule.state_dict(), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", [*WEIGHTINGS, *BALANCING, "dwa+pcgrad"])
def test_half_precision_of_the_network_leaves_the_state_as_it_is(name):
    rule = make_method(name, K)
    types = {key: value.dtype for key, value in rule.state_dict().items() if isinstance(value, torch.Tensor)}
    inside = nn.ModuleList([nn.Linear(2, 2), rule]).half()
    assert inside[0].weight.dtype == torch.float16
    for key, dtype in types.items():
        assert rule.state_dict()[key].dtype == dtype
    assert all(b.is_meta for b in rule.to("meta").buffers())


def test_update_in_inference_mode_leaves_weights_to_train_with():
    rule = DeepChest(K)
    with torch.inference_mode():
        rule.update(torch.tensor([0.1, 0.5, 0.9]))
    assert rule.weights.tolist() == pytest.approx([1.1, 1 / 1.05, 1 / 1.05])
    rule(torch.ones(K, dtype=torch.float64, requires_grad=True)).backward()
    rule.load_state_dict(DeepChest(K).state_dict())
    assert rule.weights.tolist() == [1.0] * K


@pytest.mark.parametrize(
    "wrong",
    [torch.tensor([5.0, 2.0, 30.0]), torch.tensor([-0.1, 0.2, 0.3]), torch.tensor([0.1]), torch.tensor(0.1), [0.1] * 3],
)
def test_prevalence_is_a_share_of_each_task(wrong):
    """Where types are checked, as in these tests, the annotation refuses some before the class does."""
    for name in ("inverse_prevalence", "anneal", "gradnorm", "amtl", 'lbtw(initial_loss="entropy")'):
        with pytest.raises((ValueError, TypeError), match="prevalence"):
            make_method(name, K).begin(wrong)
    with pytest.raises((ValueError, TypeError), match=r"prevalence|report should be of 3 tasks\. Found 1"):
        make_method("hedge", K).end_epoch(EpochReport(1, wrong, {"loss": torch.ones(torch.as_tensor(wrong).numel())}))


@pytest.mark.parametrize(("name", "buffer"), [("stch", "nadir"), ("igb", "base")])
def test_epochs_may_be_reported_with_gaps(name, buffer):
    rule = make_method(name, K)
    for epoch in (1, 3, 7, 9):
        rule.end_epoch(EpochReport(epoch, torch.full((K,), 0.3), {"loss": torch.full((K,), float(epoch))}))
    assert getattr(rule, buffer).tolist() == [{"stch": 7.0, "igb": 3.0}[name]] * K


def test_anneal_s_state_goes_on_also_if_begin_comes_after_it():
    rule, prevalence = make_method("anneal", K), torch.full((K,), 0.3)
    rule.begin(prevalence)
    rule(torch.full((K,), 0.1, requires_grad=True))
    other = make_method("anneal", K)
    other.load_state_dict(rule.state_dict())
    other.begin(prevalence)
    torch.testing.assert_close(other.state_dict(), rule.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "static"])
def test_a_method_is_pickled(name):
    rule = pickle.loads(pickle.dumps(make_method(name, K)))
    rule.begin(torch.full((K,), 0.3))
    assert type(rule) is type(make_method(name, K))


# options


def test_subclass_with_its_own_options_has_those_it_hands_on_checked():
    class Mine(DeepChest):
        def __init__(self, num_tasks, **options):
            super().__init__(num_tasks, **options)

    for options in ({"normalize": "no"}, {"floor": True}):
        with pytest.raises(ValueError, match="should be of type"):
            Mine(K, **options)
    assert Mine(K, floor=0.25).floor == 0.25


def test_repr_shows_the_options():
    assert repr(DeepChest(3, floor=0.25)) == (
        "DeepChest(num_tasks=3, signal='accuracy', step_up=1.1, step_down=1.05, cap=1.5, floor=0.25, normalize=False, "
        "initial=None, scores_from='train')"
    )
    assert repr(make_method("inverse_entropy", 3)) == "Static(num_tasks=3, values='inverse_entropy')"
    assert "(inner): PCGrad(num_tasks=3, level='features')" in repr(make_method('equal+pcgrad(level="features")', 3))
    assert "floor=0.25" in repr(copy.deepcopy(DeepChest(3, floor=0.25)))
    for name in METHODS:
        options = {"values": [1.0] * K} if name == "static" else {}
        assert "num_tasks=3" in repr(make_method(name, K, **options))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deepchest(normalize='no')", r"normalize should be of type bool\. Found 'no'"),
        ("deepchest(normalize=1)", r"normalize should be of type bool\. Found 1"),
        ("deepchest(floor=True)", r"floor should be of type float\. Found True"),
        ("deepchest(step_up='1.1')", r"step_up should be of type float\. Found '1\.1'"),
        ("anneal(window=10.5)", r"window should be of type int\. Found 10\.5"),
        ("anneal(power=True)", r"power should be of type float \| None\. Found True"),
        ("mgda(level=1)", r"level should be of type str\. Found 1"),
        ("deepchst(floor=0.25)", r"Did you mean 'deepchest'\?"),
        ("deepchest(flor=0.25)", r"Did you mean 'floor'\?"),
        ("deepchest(floor=2.0)", r"floor and cap should hold"),
        ("equal(inner_options=3)+gls", r"inner_options should be of type dict\. Found 3"),
        ("+".join(["a"] * 5000), r"method should be one of .*Found 'a\+a"),
        ("+".join(["equal"] * 5000), r"at most ten names joined by \+\. Found 5000"),
        ("+".join(["equal()"] * 5000), r"at most ten\. Found 'equal\(\)\+"),
        ("a(" * 5000, r"a method or loss should read NAME"),
    ],
)
def test_wrong_method_or_option_is_said_before_there_are_data(text, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        check_method(text)
    assert len(str(error.value)) < 1200
    with pytest.raises(ValueError, match=said):
        train(TrainConfig(method=text, dataset="nih", data_root=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=said):
        make_method(text, K)


def test_good_options_are_not_refused():
    for text in (
        "deepchest(floor=0.5, cap=2.0)",
        "static(values=[1.0, 2.0, 3.0])",
        "anneal(power=None)",
        "amtl(potential=[.9, .8])",
    ):
        assert check_method(text) == parse_method(text)


def test_options_in_brackets_are_options_given_apart():
    text = 'deepchest(floor=0.25)+pcgrad(level="features")'
    apart = {"floor": 0.25, "inner_options": {"level": "features"}}
    config = TrainConfig(method=text)
    assert (config.method, config.method_options) == ("deepchest+pcgrad", apart)
    assert config == TrainConfig(method="deepchest+pcgrad", method_options=apart)
    assert config.identity() == TrainConfig(method="deepchest+pcgrad", method_options=apart).identity()
    assert repr(make_method(text, K)) == repr(make_method("deepchest+pcgrad", K, **apart))
    mixed = TrainConfig(method="deepchest(floor=0.25)", method_options={"cap": 2.0})
    assert mixed.method_options == {"floor": 0.25, "cap": 2.0}
    for given in ({"floor": 0.5}, {"inner_options": {"level": "parameters"}}):
        with pytest.raises(ValueError, match=r"option (floor|level) stands in .*and again apart.*Leave one out"):
            TrainConfig(method=text, method_options=given)
        with pytest.raises(ValueError, match="Leave one out"):
            make_method(text, K, **given)
    with pytest.raises(ValueError, match="method_options should not have num_tasks"):
        TrainConfig(method="deepchest(num_tasks=3)")


# scores


@pytest.mark.parametrize(
    "scores",
    [
        [0.2, None, 0.9],
        (0.2, NAN, 0.9),
        np.array([0.2, NAN, 0.9]),
        pd.Series([0.2, NAN, 0.9], index=["Mass", "Hernia", "Edema"]),
        [torch.tensor(0.2), torch.tensor(NAN), torch.tensor(0.9)],
        torch.tensor([0.2, NAN, 0.9], requires_grad=True),
    ],
    ids=["list with None", "tuple", "numpy", "pandas", "list of tensors", "tensor with gradient"],
)
def test_scores_come_in_any_sequence(scores):
    weighting = DeepChest(3)
    weighting.update(scores)
    assert weighting.weights.tolist() == [1.1, 1, 1 / 1.05]


@pytest.mark.parametrize("scores", [0.9, {"a": 0.1, "b": 0.2, "c": 0.3}, [[0.1], [0.2], [0.3]], "abc"])
def test_what_are_no_scores_is_one_clear_error(scores):
    with pytest.raises(ValueError, match=r"scores should be 3 numbers, one a task in order\. Found "):
        DeepChest(3).update(scores)


@pytest.mark.parametrize("signal", ["loss_trend", "relative_loss", "prevalence"])
def test_signal_that_update_cannot_use_is_said(signal):
    with pytest.raises(ValueError, match=rf"signal '{signal}' is no score that update could take\. Call end_epoch"):
        DeepChest(3, signal=signal).update([0.1, 0.2, 0.3])
    DeepChest(3, signal="auroc").update([0.1, 0.2, 0.3])


def test_what_a_method_does_not_have_is_said():
    with pytest.raises(NotImplementedError, match=r"PCGrad has no loss to differentiate\. Call backward"):
        make_method("pcgrad", 3)(torch.ones(3))
    with pytest.raises(NotImplementedError, match=r"Uncertainty takes no scores\. Call end_epoch"):
        make_method("uncertainty", 3).update([0.1, 0.2, 0.3])


def rank_updates(rank: int, folder: str, ranks: int) -> None:
    """Ten epochs on one rank: the scores are those of its own images, the counts differ, one task is on rank 0 alone."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    weightings = [DeepChest(4), DeepChest(4)]
    generator, right, seen = torch.Generator().manual_seed(rank), [], []
    for _ in range(10):
        counts = torch.randint(1, 50, (4,), generator=generator)
        counts[3] = 0 if rank else counts[3]
        correct = (counts * torch.rand(4, generator=generator)).round()
        weightings[0].update(correct / counts)
        weightings[1].update(correct / counts, counts)
        right.append(correct)
        seen.append(counts)
    weights = torch.stack([w.weights for w in weightings])
    torch.save([weights, torch.stack(right), torch.stack(seen)], Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_learn_the_same(tmp_path):
    mp.spawn(rank_updates, (str(tmp_path), 2), nprocs=2)
    (one, right_0, seen_0), (other, right_1, seen_1) = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    assert torch.equal(one, other)
    whole = DeepChest(4)  # one process with all images
    for right, seen in zip(right_0 + right_1, seen_0 + seen_1, strict=True):
        whole.update(right.double() / seen)
    torch.testing.assert_close(one[1], whole.weights)
    assert not torch.equal(one[0], one[1])  # unequal counts, taken for equal


# the snippets


def batches(steps: int, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    prevalence = torch.tensor([0.1, 0.5, 0.3])
    return [
        (torch.randn(size, 5, generator=generator), (torch.rand(size, K, generator=generator) < prevalence).float())
        for _ in range(steps)
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_lightning_trains_in_bf16_with_losses_and_weights_in_full(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")
    names: dict = {}
    exec(LIGHTNING, names)
    seen = []

    class Watched(names["Weighted"]):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            seen.append((loss, self.weighting.weights.clone()))
            return loss

    module = Watched(nn.Linear(5, K), K)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        max_epochs=3, precision="bf16-mixed", default_root_dir=tmp_path, enable_checkpointing=False, **options
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(4), batch_size=None))
    assert len(seen) == 12
    assert {loss.dtype for loss, _ in seen} == {torch.float32}
    assert seen[3][1].tolist() == [1] * K  # an epoch's weights are held
    assert len({tuple(weights.tolist()) for _, weights in seen}) == 3
    assert torch.equal(module.state_dict()["weighting._raw_weights"], module.weighting.weights)


def test_libmtl_s_weighting_learns_once_an_epoch(monkeypatch):
    """In a class of the shape of LibMTL's own, and a trainer that uses it as LibMTL's does."""

    class AbsWeighting(nn.Module):
        def init_param(self):
            pass

    shaped = types.ModuleType("LibMTL.weighting.abstract_weighting")
    shaped.AbsWeighting = AbsWeighting
    for name in ("LibMTL", "LibMTL.weighting"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, shaped.__name__, shaped)
    names: dict = {}
    exec(LIBMTL, names)

    class Model(nn.Module):
        def __init__(self, task_num, device):
            super().__init__()
            self.task_num, self.device, self.net = task_num, device, nn.Linear(5, task_num)

    class MTLModel(Model, names["DeepChestWeighting"]):
        def __init__(self, *args):
            super().__init__(*args)
            self.init_param()

    torch.manual_seed(0)
    model, epochs, used = MTLModel(K, torch.device("cpu")), 4, []
    model.train_loss_buffer = np.zeros([K, epochs])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    reference = make_method("deepchest_loss_trend", K)
    for epoch in range(epochs):
        model.epoch = epoch
        of_epoch = []
        for x, y in batches(3):
            losses = torch.stack([binary_cross_entropy_with_logits(model.net(x)[:, k], y[:, k]) for k in range(K)])
            optimizer.zero_grad()
            used.append(model.backward(losses))
            optimizer.step()
            of_epoch.append(losses.detach().numpy())
        assert used[-1].tolist() == reference.weights.tolist()
        model.train_loss_buffer[:, epoch] = np.mean(of_epoch, axis=0)
        loss = torch.from_numpy(model.train_loss_buffer[:, epoch].copy())
        reference.end_epoch(EpochReport(epoch + 1, torch.full((K,), 0.5).double(), {"loss": loss}))
    assert isinstance(used[0], np.ndarray)
    assert used[0].tolist() == used[2].tolist() == [1] * K
    assert used[-1].tolist() != [1] * K


OWN_SCORES = ("static", "deepchest_auroc", "deepchest_balanced_accuracy", "val_discount")  # as the page says


@pytest.mark.parametrize("name", [n for n in METHODS if n not in OWN_SCORES])
@pytest.mark.filterwarnings("ignore")  # of solvers
def test_any_method_trains_in_the_loop_of_the_readme(name):
    """Also where labels are unknown: of the second task in two batches of four, of the third in all."""
    names: dict = {}
    exec(ANY, names)
    torch.manual_seed(0)
    trunk, head = nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, K)
    before = head.weight.detach().clone()
    criterion = nn.BCEWithLogitsLoss(reduction="none")
    data = batches(4)
    for number, (_, labels) in enumerate(data):
        labels[:, 2] = torch.nan
        labels[:: 2 - number % 2, 1] = torch.nan
    rule = names["train_with"](name, trunk, head, criterion, data, 3, torch.tensor([0.1, 0.3, torch.nan]))
    assert (head.weight != before).any(1)[:2].all()
    assert not head.weight.grad[2].any()
    assert head.weight.isfinite().all()
    if name in ("deepchest", "deepchest_relative_loss"):
        assert rule.weights[0] != rule.weights[1]  # it was told of the epochs
        assert rule.weights[2] == 1  # and of no score here
    assert all(parameter[:2].any() for parameter in rule.parameters())  # and these were trained
    assert name != "famo" or rule.xi[:2].all()


def test_accumulated_gradients_are_those_of_the_whole_batch():
    names: dict = {}
    exec(ACCUMULATE, names)
    torch.manual_seed(0)
    net, weighting, parts = nn.Linear(5, K), made(), batches(4)
    criterion = nn.BCEWithLogitsLoss(reduction="none")
    names["accumulate"](net, weighting, criterion, parts)
    found = net.weight.grad.clone()
    net.zero_grad()
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    weighting(criterion(net(x), y).mean(dim=0)).backward()
    torch.testing.assert_close(found, net.weight.grad)


WRONG_SHAPES = """
import torch
from deepchest_utils import DeepChest, EpochReport, make_loss

loss, labels = make_loss("focal", torch.eye(3)), torch.zeros(5, 3)
for call in (
    lambda: DeepChest(3)({0: torch.ones(()), 1: torch.ones(()), 2: torch.ones(())}),
    lambda: DeepChest(3)(1.0),
    lambda: loss(torch.zeros(5, 3), labels[:, :1]),
    lambda: loss(torch.zeros(5, 1), labels),
    lambda: loss(torch.zeros(5, 3), labels.long()),
    lambda: loss(torch.zeros(5, 1), labels[:, :1]),
    lambda: loss(torch.zeros(5, 3), labels - 1),
    lambda: EpochReport(1, torch.ones(3), {"loss": [0.1, 0.2, 0.3]}),
    lambda: EpochReport(1, torch.ones(3), val={"loss": torch.ones(3, 1)}),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_wrong_shapes_are_one_line_each_where_no_test_checks_the_types():
    done = subprocess.run([sys.executable, "-c", WRONG_SHAPES], capture_output=True, text=True)
    shapes = "logits and labels should have shape (5, 3), and be floating point."
    assert done.stdout.splitlines() == [
        "losses should be a tensor or a list, one loss a task in order. Found a dict.",
        "losses should be a tensor or a list, one loss a task in order. Found a float.",
        f"{shapes} Found logits (5, 3), and labels (5, 1) of torch.float32.",
        f"{shapes} Found logits (5, 1), and labels (5, 3) of torch.float32.",
        f"{shapes} Found logits (5, 3), and labels (5, 3) of torch.int64.",
        f"{shapes} Found logits (5, 1), and labels (5, 1) of torch.float32.",
        "labels should be 1, 0 or NaN for unknown, of shape (N, K). Found shape (5, 3), values [-1.0].",
        "train['loss'] should be a tensor of the shape of prevalence, (3,). Found [0.1, 0.2, 0.3].",
        "val['loss'] should be a tensor of the shape of prevalence, (3,). Found tensor([[1.],         [1.],         [1.]]).",
    ], done.stderr
