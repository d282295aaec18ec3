"""Public reports about the loss, tried."""

import math

import pytest
import torch

from inception.loss import inception_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 0.99])
def test_label_smoothing_with_two_classes(smoothing: float) -> None:
    """pytorch/pytorch#7455, eladhoffer/utils.pytorch#13: epsilon / (C - 1) or epsilon / C. With two
    classes they differ twofold; ours is the paper's, epsilon / C (1512.00567, section 7)."""
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.25]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    loss = inception_loss(
        logits, [], targets, label_smoothing=smoothing, weights=torch.ones(2, dtype=torch.float64)
    )
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            share = smoothing / 2 + (1 - smoothing if index == target else 0)
            expected -= share * (value - log_sum)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-12)


def test_smoothing_of_two_classes_learns_the_right_one() -> None:
    """huggingface/pytorch-image-models#1040. The best logits differ by log((2 - e) / e)."""
    smoothing, targets = 0.2, torch.tensor([0, 1])
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.ones(2, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = inception_loss(logits, [], targets, label_smoothing=smoothing, weights=weights)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    gaps = (logits[:, 0] - logits[:, 1]).tolist()
    assert gaps == pytest.approx([math.log(9), -math.log(9)], abs=1e-4)


def test_a_batch_of_damaged_samples_has_a_loss_of_zero() -> None:
    """webdataset/webdataset#432: samples that cannot be read are skipped; all of a batch may be."""
    logits = torch.randn(4, 2, requires_grad=True)
    loss = inception_loss(logits, [], torch.zeros(4, dtype=torch.int64), weights=torch.zeros(4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(4, 2))  # type: ignore[arg-type]
