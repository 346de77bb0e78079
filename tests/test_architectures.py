"""What tasks share: each architecture against the plain trunks that it is made of, which task reaches which
parameter, and whole runs."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from deepchest_utils import FINDINGS, Splits, TrainConfig, load_dataset, make_method, train
from deepchest_utils import config as config_module
from deepchest_utils.__main__ import main, parse
from deepchest_utils.config import parse_method
from deepchest_utils.datasets import ChestXrays, DataWarning
from deepchest_utils.models.losses import masked_bce
from deepchest_utils.models.network import MultiTaskNet, prevalence_logit
from deepchest_utils.models.sharing import ARCHITECTURES, CrossStitch, RowHeads, SingleTask
from deepchest_utils.training import loop as run_module
from deepchest_utils.training.loop import Loop
from deepchest_utils.training.setup import make_optimizer

NAN = torch.nan
THIN = "resnet18_thin"
K = 3
ROWS = ("single_task", "cross_stitch", "mtan")
pytestmark = pytest.mark.usefixtures("one_thread")
each = pytest.mark.parametrize("architecture", ROWS)


def make(architecture: str, num_tasks: int = K, backbone: str = THIN, **options) -> nn.Module:
    """The network of one seed: architectures with as many trunks start from the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ARCHITECTURES[architecture](backbone, num_tasks, 32, **options)


def scramble(net: nn.Module) -> nn.Module:
    """In eval mode, with running statistics other than zero and one, as after training."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def grey(n: int = 8) -> torch.Tensor:
    return torch.randn(n, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def labels(n: int = 8, num_tasks: int = K) -> torch.Tensor:
    """Both classes of each task, and an unknown label."""
    found = (torch.arange(n)[:, None] + torch.arange(num_tasks)) % 2.0
    found[0, 0] = NAN
    return found


def collect(module: nn.Module, into: list, inputs: bool = False) -> None:
    """From now on, append each output of the module (or each first input)."""
    module.register_forward_hook(lambda _, given, out: into.append(given[0] if inputs else out))


def touched(modules: nn.Module) -> bool | None:
    """Whether all parameters have a gradient other than 0 (True), none has (False), or some (None)."""
    found = {p.grad is not None and bool(p.grad.any()) for p in modules.parameters()}
    return found.pop() if len(found) == 1 else None


# shapes and names


@pytest.mark.parametrize(
    ("architecture", "num_tasks", "backbone", "size"),
    [
        *((name, n, *of) for name in ROWS for n in (1, 2, 14) for of in ((THIN, 128), ("resnet18", 512))),
        ("mtan", 2, "resnet50", 2048),  # bottlenecks end wider than they are inside
    ],
)
def test_features_have_a_row_a_task(architecture, num_tasks, backbone, size):
    with torch.device("meta"):  # shapes without numbers: 14 whole networks cost nothing
        net = ARCHITECTURES[architecture](backbone, num_tasks, 32)
        features = net.features(torch.empty(2, 1, 32, 32))
    assert features.shape == (2, num_tasks, size)
    assert net.head(features).shape == (2, num_tasks)


BACKBONES = [("mobilenet_v3_small", 1024), ("densenet121", 1024), ("vit_b_16", 768)]


@pytest.mark.parametrize(("backbone", "size"), BACKBONES)
def test_network_without_stages_is_for_single_tasks_alone(backbone, size):
    with torch.device("meta"):
        assert SingleTask(backbone, 2, 32).features(torch.empty(2, 1, 32, 32)).shape == (2, 2, size)
        for name in ("cross_stitch", "mtan"):
            with pytest.raises(ValueError, match=f"'{name}' needs a ResNet as backbone. Found '{backbone}'"):
                ARCHITECTURES[name](backbone, 2, 32)


def test_unknown_architecture_lists_those_there_are(capsys):
    assert tuple(ARCHITECTURES) == config_module.ARCHITECTURES
    named = "architecture should be one of hard_sharing, single_task, cross_stitch, mtan. Found 'mtl'"
    with pytest.raises(ValueError, match=named):
        TrainConfig(architecture="mtl")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--architecture", "mtl"])
    message = capsys.readouterr().err
    assert all(f"{name!r}" in message for name in ARCHITECTURES)
    assert "'mtl'" in message


def test_command_line_has_the_architecture(monkeypatch):
    seen = []
    monkeypatch.setattr("deepchest_utils.training.train", lambda config: seen.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a run would take minutes
        main(["train", "--architecture", "mtan"])
    assert seen[0].architecture == "mtan"
    several = parse(["sweep", "--architecture", "single_task", "mtan"])
    assert several.config.architecture == ("single_task", "mtan")


# heads


def test_bias_starts_at_the_logit_of_the_prevalence():
    prevalence = torch.tensor([0.002, 0.5, 0.9, 0.0, 1.0, NAN], dtype=torch.float64)
    expected = torch.tensor([0.002, 0.5, 0.9, 1e-4, 1 - 1e-4, 0.5], dtype=torch.float64)
    torch.testing.assert_close(prevalence_logit(prevalence, 6).sigmoid(), expected)
    assert prevalence_logit(None, 3).tolist() == [0, 0, 0]
    for architecture in ARCHITECTURES:
        with torch.no_grad():
            net = make(architecture, 6, prevalence=prevalence)
            net.head.weight.zero_()
            p = net(grey(2)).sigmoid()
        torch.testing.assert_close(p.double(), expected.expand(2, 6), rtol=1e-4, atol=1e-7)


def test_each_head_reads_its_own_row():
    head = RowHeads(4, K)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    features = torch.randn(5, K, 4)
    expected = [linear(features[:, k], head.weight[k : k + 1], head.bias[k : k + 1]) for k in range(K)]
    torch.testing.assert_close(head(features), torch.cat(expected, dim=1))
    assert 0 < head.weight.abs().max() <= 0.5  # torch.nn.Linear's bound, 1 / sqrt(F)
    assert len(head.weight.unique()) == 12


# laws of all


@each
@pytest.mark.parametrize(("backbone", "num_tasks"), [(THIN, 1), (THIN, K), ("resnet18", 2)])
def test_every_parameter_is_trained(architecture, backbone, num_tasks):
    net = make(architecture, num_tasks, backbone)
    losses = masked_bce(net(grey()), labels(num_tasks=num_tasks))
    losses.sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_image_is_seen_alone_and_memory_layout_is_of_no_consequence(architecture):
    net, x = scramble(make(architecture)), grey(4)
    with torch.no_grad():
        together = net(x)
        alone = torch.cat([net(image[None]) for image in x])
        net.to(memory_format=torch.channels_last)
        last = net(x.to(memory_format=torch.channels_last))
    assert together.std(dim=0).min() > 1e-4  # else there is nothing to compare
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, together, rtol=1e-4, atol=1e-5)


@each
def test_autocast_is_near_to_full_precision(architecture):
    net, x = scramble(make(architecture)), grey()
    full = net(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x)
    assert not torch.equal(half, full)
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.05)  # a quarter of what images differ by
    masked_bce(half, labels()).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def gradients(architecture: str, method: str, **options) -> list[torch.Tensor]:
    """Of one step, where conflict is certain: the tasks start from one head, and tasks 0 and 1 want the opposite."""
    net = make(architecture)
    with torch.no_grad():
        net.head.weight.copy_(net.head.weight[:1].expand(K, -1).clone())
    features = net.features(grey())
    losses = masked_bce(net.head(features), labels())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_method(method, num_tasks=K, **options).backward(losses, features)
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize(
    ("architecture", "level", "same"),
    [
        # a row of features is a task's own: seen from there, no two tasks meet
        *((architecture, "features", True) for architecture in ROWS),
        ("single_task", "parameters", True),  # nor do they anywhere else
        ("cross_stitch", "parameters", False),
        ("mtan", "parameters", False),
        ("hard_sharing", "features", False),
    ],
)
def test_conflict_is_seen_only_where_tasks_share(architecture, level, same):
    surgery, plain = gradients(architecture, "pcgrad", level=level), gradients(architecture, "equal")
    differ = [not torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(surgery, plain, strict=True)]
    assert any(differ) != same


# single tasks


def test_no_gradient_crosses_between_single_tasks():
    for k in range(K):
        net = make("single_task")
        masked_bce(net(grey()), labels())[k].backward()
        assert [touched(trunk) for trunk in net.trunks] == [j == k for j in range(K)]
        assert net.head.weight.grad.any(1).tolist() == [j == k for j in range(K)]
        assert net.head.bias.grad.bool().tolist() == [j == k for j in range(K)]


def test_single_task_trained_beside_others_equals_one_trained_alone():
    """AdamW steps each parameter for itself. In double precision, for its first steps make much of rounding."""
    given = TrainConfig(device="cpu")

    def descend(net: nn.Module, target: torch.Tensor) -> nn.Module:
        optimizer = make_optimizer(given, net.parameters())
        for step in range(5):
            optimizer.zero_grad()
            masked_bce(net(grey(24)[4 * step :][:4].double()), target[4 * step :][:4]).sum().backward()
            optimizer.step()
        return net

    together, target = make("single_task").double(), labels(24)
    alone = []
    for k in range(K):
        net = MultiTaskNet(THIN, 1, 32).double()
        net.trunk.load_state_dict(together.trunks[k].state_dict())
        net.head.load_state_dict({name: p[k : k + 1] for name, p in together.head.state_dict().items()})
        alone.append(net)
    start = together.trunks[0].conv1.weight.detach().clone()
    descend(together, target)
    assert not torch.allclose(together.trunks[0].conv1.weight, start, atol=1e-3)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)  # five steps of 2e-3
    for k, net in enumerate(alone):
        descend(net, target[:, k : k + 1])
        close(dict(together.trunks[k].state_dict()), dict(net.trunk.state_dict()))
        close(together.head.weight[k], net.head.weight[0])
        close(together.head.bias[k], net.head.bias[0])


# cross-stitch


def set_alpha(net: CrossStitch, *matrices: torch.Tensor) -> None:
    """The same matrix after each stage, or one a stage."""
    with torch.no_grad():
        for i, alpha in enumerate(net.alpha):
            alpha.copy_(matrices[i % len(matrices)])


@pytest.mark.parametrize(("num_tasks", "off"), [(1, 0.0), (2, 0.1), (K, 0.05)])
def test_alpha_starts_at_mostly_the_tasks_own_maps(num_tasks, off):
    alphas = make("cross_stitch", num_tasks).alpha
    expected = torch.full((num_tasks, num_tasks), off).fill_diagonal_(0.9 if num_tasks > 1 else 1.0)
    assert len(alphas) == 5  # after the stem and after each stage
    for alpha in alphas:
        torch.testing.assert_close(alpha.detach(), expected)
        torch.testing.assert_close(alpha.detach().sum(1), torch.ones(num_tasks))
    assert len({id(alpha) for alpha in alphas}) == 5


def test_cross_stitch_with_identity_is_single_tasks():
    net, single = make("cross_stitch"), make("single_task")
    assert not torch.allclose(net(grey()), single(grey()))
    set_alpha(net, torch.eye(K))
    torch.testing.assert_close(net(grey()), single(grey()))


def test_cross_stitch_of_equal_shares_shows_every_task_the_same():
    net, seen = make("cross_stitch"), []
    set_alpha(net, torch.full((K, K), 1 / K))
    for stage in net.stages:
        for block in stage:
            collect(block, seen, inputs=True)
    features = net.features(grey())
    assert len(seen) == 5 * K
    for i in range(5):
        for row in seen[K * i : K * i + K]:
            torch.testing.assert_close(row, seen[K * i])
    torch.testing.assert_close(features, features[:, :1].expand_as(features))
    assert features.std() > 0.01


def test_cross_stitch_mixes_by_rows():
    """x_k <- sum_j alpha_kj x_j, by hand, between all stages and before the features."""
    net, inputs, outputs = make("cross_stitch"), [], []
    alphas = torch.randn(5, K, K, generator=torch.Generator().manual_seed(2))
    set_alpha(net, *alphas)
    for stage in net.stages:
        for block in stage:
            collect(block, inputs, inputs=True)
            collect(block, outputs)
    features = net.features(grey())
    for i, alpha in enumerate(alphas):
        maps = outputs[K * i : K * i + K]
        for k in range(K):
            expected = sum(alpha[k, j] * maps[j] for j in range(K))
            found = inputs[K * (i + 1) + k] if i < 4 else features[:, k]
            expected = expected if i < 4 else expected.mean((2, 3))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_trunk_reaches_other_tasks_through_alpha_alone():
    net = scramble(make("cross_stitch"))

    def moved() -> list[bool]:
        """Which tasks' features change with the trunk of task 1."""
        weight = net.stages[2][1][0].conv1.weight
        with torch.no_grad():
            before = net.features(grey(2))
            weight += 0.1
            after = net.features(grey(2))
            weight -= 0.1
        return (before != after).flatten(2).any(2).any(0).tolist()

    nothing_of_1 = torch.tensor([[0.9, 0.0, 0.1], [0.3, 0.4, 0.3], [0.1, 0.0, 0.9]])
    set_alpha(net, nothing_of_1)
    assert moved() == [False, True, False]
    with torch.no_grad():
        net.alpha[-1][0, 1] = 0.5
    assert moved() == [True, True, False]


# MTAN


def test_masks_weigh_the_shared_maps_and_see_the_stage_and_their_own_past():
    """Equations 1 and 2 of the paper, from what passes between the parts."""
    net = make("mtan")
    u, p, masks, seen, carry_in, carry_out = [], [], [], [], [], []
    for i, stage in enumerate(net.stages):
        collect(stage[0], u)
        collect(stage[1], p)
        for mask in net.masks[i]:
            collect(mask, masks)
            collect(mask, seen, inputs=True)
        collect(net.carry[i], carry_in, inputs=True)
        collect(net.carry[i], carry_out)
    features = net.features(grey())
    assert len(masks) == len(seen) == 4 * K
    assert len(carry_in) == 3 * K  # the first stage has no past
    for i in range(4):
        for k in range(K):
            mask = masks[K * i + k]
            assert ((mask > 0) & (mask < 1)).all()
            assert mask.shape == p[i].shape
            if i < 3:
                torch.testing.assert_close(carry_in[K * i + k], mask * p[i])
            else:
                torch.testing.assert_close(features[:, k], (mask * p[i]).mean((2, 3)))
            stage, *past = seen[K * i + k].split(u[i].shape[1], dim=1)
            assert torch.equal(stage, u[i])
            assert len(past) == (i > 0)
            if i:  # one place in four is left: the largest of each square
                assert torch.equal(past[0], nn.functional.max_pool2d(carry_out[K * (i - 1) + k], 2))
    assert not torch.allclose(masks[0], masks[1])


class Open(nn.Module):
    """A mask that hides nothing."""

    def forward(self, seen):
        return seen.new_ones(())


def test_open_masks_leave_the_plain_trunk():
    net, plain = make("mtan"), make("hard_sharing")
    for masks in net.masks:
        for k in range(K):
            masks[k] = Open()
    expected = plain.features(grey())
    torch.testing.assert_close(net.features(grey()), expected[:, None].expand(-1, K, -1))


def test_attention_learns_from_its_own_task_and_the_trunk_from_all():
    for k in range(K):
        net = make("mtan")
        masked_bce(net(grey()), labels())[k].backward()
        for masks in net.masks:
            assert [touched(mask) for mask in masks] == [j == k for j in range(K)]
        assert net.head.weight.grad.any(1).tolist() == [j == k for j in range(K)]
        assert touched(nn.ModuleList([net.stem, net.stages, net.carry]))


# whole runs


@pytest.fixture(scope="module")
def tiny() -> Splits:
    """Three common findings, 32 images of 32 px to train with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        whole = load_dataset("phantom", image_size=32, num_train=64, num_val=48, num_test=48)
        columns = np.argsort(-np.nansum(whole.train.labels, axis=0))[:K]
        names = tuple(FINDINGS[k] for k in columns)
        parts = {
            name: ChestXrays(p.images[:32], p.labels[:32, columns], p.patients[:32], names, p.ids[:32])
            for name, p in whole.parts.items()
        }
        return Splits(**parts, name="tiny", split="patient")


# by default each architecture once and each kind of method once
RESUMED = {
    ("single_task", "deepchest"),
    ("cross_stitch", "pcgrad"),
    ("mtan", "equal"),
    ("mtan", "pcgrad(level='features')"),
}


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        pytest.param(architecture, method, marks=() if (architecture, method) in RESUMED else pytest.mark.slow)
        for architecture in ROWS
        for method in ("equal", "deepchest", "pcgrad", "pcgrad(level='features')")
    ],
)
def test_run_trains_and_goes_on_as_if_never_stopped(tiny, tmp_path, monkeypatch, architecture, method):
    name, options = parse_method(method)
    given = TrainConfig(
        architecture=architecture, method=name, method_options=options, image_size=32, epochs=2,
        batch_size=16, device="cpu", run_dir=str(tmp_path),
    )  # fmt: skip
    save = run_module.checkpoint.save_checkpoint
    with monkeypatch.context() as patch:  # the second epoch is not written: as if stopped in it
        patch.setattr(run_module.checkpoint, "save_checkpoint", lambda d, state: state["epoch"] == 1 and save(d, state))
        whole = train(given, tiny)
    torch.rand(7)  # what else the process draws is of no consequence
    passes, one = [], Loop.train_epoch
    monkeypatch.setattr(Loop, "train_epoch", lambda self, n: passes.append(n) or one(self, n))
    again = train(given, tiny)
    assert passes == [2]
    assert np.isfinite(whole.logits["test"]).all()
    for split in ("val", "test"):
        assert np.array_equal(whole.logits[split], again.logits[split])
    assert_same(whole.model, again.model)
    assert_same(whole.method, again.method)
    tables = [run.history[run.history.task != "run"].reset_index(drop=True) for run in (whole, again)]
    assert tables[0].equals(tables[1])


def assert_same(a: nn.Module, b: nn.Module):
    torch.testing.assert_close(dict(a.state_dict()), dict(b.state_dict()), rtol=0, atol=0, equal_nan=True)


def test_loop_starts_heads_at_the_prevalence_and_refuses_another_architectures_run(tiny, tmp_path):
    given = {"image_size": 32, "epochs": 1, "device": "cpu", "run_dir": str(tmp_path)}
    with torch.random.fork_rng():
        bias = Loop(TrainConfig(architecture="mtan", **given), tiny).net.head.bias
    share = torch.from_numpy(tiny.train.prevalence).to(bias)
    torch.testing.assert_close(bias.detach().sigmoid(), share)
    train(TrainConfig(**given), tiny)
    with pytest.raises(ValueError, match="architecture: 'hard_sharing' there, 'mtan' now"):
        train(TrainConfig(architecture="mtan", **given), tiny)
