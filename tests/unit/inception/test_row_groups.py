"""Groups of rows in one pass: what small passes compute."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from inception.layers import GridMean
from inception.mix import MixConfig
from inception.row_groups import GroupedBatchNorm2d, sort_by_group
from tests.unit.inception.ranks import Batch, batch, one_step


def test_a_group_has_the_rows_of_a_smaller_micro_batch() -> None:
    """A step's positions are dealt out in turn: 3 micro-batches of 4, or 6 of 2."""
    positions = torch.arange(12)
    for index in range(3):
        sorted_rows = sort_by_group(positions[index::3], 2)
        assert sorted_rows.tolist() == [*positions[index::6], *positions[index + 3 :: 6]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_of_groups_is_torchs_of_each(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = GroupedBatchNorm2d(8, 1e-3, 0.1).to(dtype)
    norm.group_size = 4
    torch.nn.init.uniform_(norm.weight, generator=generator)
    x = torch.randn(12, 8, 5, 5, dtype=dtype, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(x.shape, dtype=dtype, generator=generator)
    outputs, statistics = [], []
    for rows in x.chunk(3):
        running = torch.zeros(8, dtype=dtype), torch.ones(8, dtype=dtype)
        outputs.append(F.batch_norm(rows, *running, norm.weight, norm.bias, True, 0.1, 1e-3))
        statistics.append(torch.stack(running))
    inputs = (x, norm.weight, norm.bias)
    expected = torch.autograd.grad((torch.cat(outputs) * gradient).sum(), inputs)
    result = norm(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, torch.cat(outputs))
    tolerance = 1e-12 if dtype is torch.float64 else 1e-4
    for a, b in zip(torch.autograd.grad((result * gradient).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    mean, var = torch.stack(statistics).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.num_batches_tracked == 1
    assert torch.equal(
        norm.eval()(x),
        F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, 1e-3
        ),
    )


@pytest.mark.parametrize("network", ["inception_v3", "googlenet"])
def test_a_pass_in_groups_is_up_to_rounding_that_of_small_passes(network: str) -> None:
    """Dropout, mixing, side heads and a damaged sample among them."""
    small = [batch(index, 0) for index in range(6)]
    large = []
    for index in range(2):
        parts = [small[index + 2 * group] for group in range(3)]
        images, targets, weights = (
            torch.stack([getattr(part, name) for part in parts], 1).flatten(0, 1)
            for name in ("images", "targets", "weights")
        )
        large.append(Batch(index, images, targets, weights))
    mix_config = MixConfig(mixup=0.3, cutmix=1.0)
    train = partial(one_step, clip_norm=None, mix_config=mix_config, name=network, dropout=0.5)
    expected, norm = train(small)
    result, norm_in_groups = train(large, group_size=4)
    assert norm_in_groups == pytest.approx(norm, rel=1e-6)
    for (name, a), b in zip(
        result.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)
    other, _ = train(large)
    assert not torch.allclose(other.get_parameter("fc.weight"), expected.get_parameter("fc.weight"))


@pytest.mark.parametrize("side", [4, 5, 7, 13, 14])
def test_the_mean_over_a_grid_is_torchs(side: int) -> None:
    x = torch.randn(2, 3, side, side + 1, dtype=torch.float64)
    torch.testing.assert_close(GridMean(4).forward_in_order(x), GridMean(4)(x))
