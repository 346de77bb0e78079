"""Statistics of task gradients: exact where nothing is random, right on average where something is."""

import pytest
import torch
from torch import nn

from deepchest_utils.models.losses import masked_bce
from deepchest_utils.studies.gradients import gradient_statistics


class Small(nn.Module):
    def __init__(self, k: int = 3):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Tanh()), nn.Linear(4, k)

    def features(self, x):
        return self.trunk(x)


def batch(generator: torch.Generator, size: int = 16, k: int = 3):
    """The first task follows the image, the second is the first again, the third is a coin."""
    x = torch.randn(size, 1, 3, 3, generator=generator)
    y = (torch.rand(size, k, generator=generator) < 0.5).float()
    y[:, 0] = y[:, 1] = (x[:, 0, 0, 0] > 0).float()
    return x, y


def test_the_same_batch_again_and_again_is_all_signal():
    net = Small()
    x, y = batch(torch.Generator().manual_seed(1))
    found = gradient_statistics(net, [(x, y)] * 3)
    losses = masked_bce(net.head(net.features(x)), y)
    rows = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, [*net.trunk.parameters()][::-1], retain_graph=True)]
            )
            for loss in losses
        ]
    ).double()
    torch.testing.assert_close(found.products, rows @ rows.T, rtol=1e-5, atol=1e-9)
    assert (found.noise.abs() < 1e-6 * found.signal).all()
    torch.testing.assert_close(found.cosines().diagonal(), torch.ones(3).double())
    assert all(p.grad is None for p in net.parameters())


def test_signal_and_noise_are_told_apart():
    """Of two batches only: unbiased, so that their mean over many pairs is what very many batches say."""
    net, generator = Small(), torch.Generator().manual_seed(2)
    truth = gradient_statistics(net, (batch(generator) for _ in range(2000)))
    pairs = [gradient_statistics(net, [batch(generator), batch(generator)]) for _ in range(500)]
    for name in ("signal", "noise"):
        each = torch.stack([getattr(pair, name) for pair in pairs])
        error = each.std(0) / len(pairs) ** 0.5
        assert ((each.mean(0) - getattr(truth, name)).abs() < 5 * error).all(), name
    biased = (truth.signal + truth.noise / 2)[2]  # the squared length of a mean of two, which the coin's would have
    assert abs(torch.stack([pair.signal for pair in pairs]).mean(0)[2]) < 0.2 * biased
    assert truth.signal[0] > 5 * abs(truth.signal[2])


def test_noise_share_is_of_the_weighted_sum():
    found = gradient_statistics(Small(), [batch(torch.Generator().manual_seed(s)) for s in range(4)])
    share = found.noise_share(torch.tensor([1.0, 2.0, 0.0]))
    torch.testing.assert_close(share.sum(), torch.tensor(1.0).double())
    torch.testing.assert_close(share[1] / share[0], 4 * found.noise[1] / found.noise[0])
    assert share[2] == 0


def test_too_little_is_refused():
    net, one = Small(), batch(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"batches should be at least two.*Found 1"):
        gradient_statistics(net, [one])
    with pytest.raises(ValueError, match=r"batches should be at least two.*Found 0"):
        gradient_statistics(net, [])
    with pytest.raises(ValueError, match="trunk with a trainable parameter"):
        gradient_statistics(net.requires_grad_(False), [one, one])
