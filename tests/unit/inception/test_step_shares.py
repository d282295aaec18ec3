"""A step with unusual shares: ranks without micro-batches, one rank with all of them."""

from pathlib import Path

import pytest
import torch

from inception.evaluate import evaluate
from inception.layers import normalize
from inception.network import InceptionNet
from inception.options import Options
from inception.precision import autocast_for, to_device_format
from tests.unit.inception.ranks import (
    Batch,
    Shares,
    Training,
    batch,
    one_step,
    train,
)

TRAINING = Training(steps=6, size=4, lr=0.02, is_damaged=True, has_run_layout=False)


@pytest.mark.parametrize(
    ("alone", "shared"),
    [
        pytest.param(((0, 1),), ((0,), (1,), ()), id="a rank without micro-batches"),
        pytest.param(((0,),), ((), (0,)), id="rank 0 without micro-batches"),
        pytest.param(((0, 1),), ((0, 1), ()), id="as many as ranks, all on rank 0"),
        pytest.param(((0, 1, 2),), ((2, 0), (1,)), id="uneven, in another order"),
    ],
)
def test_result_does_not_depend_on_the_shares(
    alone: Shares, shared: Shares, tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "shared").mkdir()
    expected, result = (
        train(TRAINING, shares, tmp_path / name)
        for name, shares in (("alone", alone), ("shared", shared))
    )
    losses, expected_losses = (
        torch.tensor(run["losses"], dtype=torch.float64) for run in (result, expected)
    )
    assert torch.allclose(losses, expected_losses, rtol=1e-9)
    assert expected["losses"][0][1] > 2.0, "the first gradient should be clipped, to test clipping"
    for name, tensor in expected["model"].items():
        if name.endswith("num_batches_tracked"):
            assert int(result["model"][name]) == int(tensor) == TRAINING.steps, name
        else:
            assert torch.allclose(result["model"][name], tensor, rtol=1e-7, atol=1e-8), name


def test_without_trained_batch_norms_two_micro_batches_are_one_of_both() -> None:
    """A network that has none: its gradient is that of all images at once."""
    first, second = batch(0, 0, is_damaged=False), batch(1, 0, is_damaged=False)
    both = Batch(
        0,
        torch.cat([first.images, second.images]),
        torch.cat([first.targets, second.targets]),
        torch.cat([first.weights, second.weights]),
    )
    options = Options(batch_norm=False, side_head_norm=False)
    gradients = []
    for micro_batches in ([first, second], [both]):
        network, _ = one_step(micro_batches, None, dropout=0.0, options=options)
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def gradient_norm(network: InceptionNet) -> float:
    return float(torch.stack([p.grad.norm() for p in network.parameters()]).norm())  # type: ignore[union-attr]


def test_norm_is_the_one_before_clipping() -> None:
    unclipped, norm = one_step([batch(0, 0, is_damaged=False)], None)
    assert gradient_norm(unclipped) == pytest.approx(norm, rel=1e-9)
    clipped, norm_before_clipping = one_step([batch(0, 0, is_damaged=False)], norm / 4)
    assert norm_before_clipping == norm
    assert gradient_norm(clipped) == pytest.approx(norm / 4, rel=1e-5)


def test_images_that_are_scaled_already_are_the_plain_case() -> None:
    plain = batch(0, 0, is_damaged=False)
    scaled = Batch(0, normalize(plain.images), plain.targets, plain.weights)
    first, _ = one_step([plain], None)
    second, _ = one_step([scaled], None)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    cpu = torch.device("cpu")
    assert evaluate(first, [plain], cpu) == evaluate(first, [scaled], cpu)


def test_a_damaged_sample_gives_no_gradient_through_its_target() -> None:
    sample = batch(0, 0)
    assert sample.weights[0] == 0
    targets = sample.targets.clone()
    targets[0] = (targets[0] + 1) % 5
    first, _ = one_step([sample], None)
    second, _ = one_step([Batch(0, sample.images, targets, sample.weights)], None)
    assert torch.equal(first.state_dict()["fc.weight"], second.state_dict()["fc.weight"])


def test_normalize_maps_bytes_to_one_around_zero_and_keeps_the_layout() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(2, 1)[:, :, None, None]
    images = images.expand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    scaled = normalize(images)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert scaled[0, :, 0, 0].tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert normalize(scaled) is scaled


def test_cpu_computes_in_float32_unless_told() -> None:
    cpu = torch.device("cpu")
    a = torch.ones(2, 2)
    for precision, dtype in (
        ("auto", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
    ):
        with autocast_for(cpu, precision)():
            assert (a @ a).dtype == dtype
    with pytest.raises(ValueError, match=r"model\.precision: got 'fp3'; .* Did you mean fp32\?"):
        autocast_for(cpu, "fp3")


def test_device_format_is_channels_last() -> None:
    model = torch.nn.Conv2d(3, 4, 3)
    to_device_format(model, torch.device("cpu"))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
