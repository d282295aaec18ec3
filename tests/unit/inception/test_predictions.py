"""Predictions and their metrics, against values computed by hand."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inception.predictions import (
    Predictions,
    average_probabilities,
    evaluate_predictions,
    make_predictions,
    merge_predictions,
)
from tests.forks import run_ranks
from tests.unit.inception.ranks import gather_rank


class Linear(nn.Module):
    """Logits from the mean of each column, which differ for a mirrored image."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(8, 5, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2)) @ self.weight  # (N, 5)


def test_softmax_is_averaged_over_networks_views_and_mirrors() -> None:
    networks = [Linear(1), Linear(2)]
    images = torch.randn(6, 3, 8, 8)  # two samples of three views
    averaged = average_probabilities(networks, images, views=3, is_mirrored=True, chunk=4)
    for sample in range(2):
        p = [
            network(image[None])[0].softmax(0)
            for network in networks
            for view in images[3 * sample : 3 * sample + 3]
            for image in (view, view.flip(2))
        ]
        assert torch.allclose(averaged[sample], torch.stack(p).mean(0), atol=1e-6)
    assert torch.allclose(averaged.sum(1), torch.ones(2), atol=1e-6)


def predictions(probabilities: list[list[float]], targets: list[int]) -> Predictions:
    n = len(targets)
    return make_predictions(
        torch.tensor(probabilities),
        torch.tensor(targets),
        torch.ones(n),
        torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)], dim=1),
        [f"key-{i}" for i in range(n)],
    )


def test_assessment_by_hand() -> None:
    p = [[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.3, 0.6]]
    metrics = evaluate_predictions(predictions(p, [0, 0, 2]), 3)
    assert metrics.count == 3
    assert metrics.top1 == pytest.approx(2 / 3)
    assert metrics.top5 == 1.0
    nll = -torch.tensor([0.7, 0.4, 0.6], dtype=torch.float64).log().mean()
    assert metrics.loss == pytest.approx(float(nll), abs=1e-6)
    assert metrics.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    # Three bins with one image each: |0.7 - 1|, |0.5 - 0|, |0.6 - 1|.
    assert metrics.calibration_error == pytest.approx((0.3 + 0.5 + 0.4) / 3, abs=1e-6)
    assert sum(count for count, _, _ in metrics.calibration) == 3


def test_top5_counts_the_truth_among_the_five_likeliest() -> None:
    p = [[0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05]] * 3
    assert evaluate_predictions(predictions(p, [4, 5, 0]), 7).top5 == pytest.approx(2 / 3)


def test_perfect_confidence_is_calibrated_and_nothing_is_infinite() -> None:
    right = evaluate_predictions(predictions([[1.0, 0.0], [0.0, 1.0]], [0, 1]), 2)
    assert right.calibration_error == 0.0
    wrong = evaluate_predictions(predictions([[1.0, 0.0]], [1]), 2)
    assert wrong.calibration_error == 1.0
    assert wrong.loss < 200


def test_padding_and_damage_are_left_out() -> None:
    predicted = make_predictions(
        torch.tensor([[0.9, 0.1]] * 3), torch.tensor([0, 1, 0]), torch.tensor([1.0, 0.0, 1.0]),
        torch.tensor([[0, 0], [-1, -1], [0, 1]]), ["a", "", "b"],
    )  # fmt: skip
    assert predicted.keys == ("a", "b")
    assert evaluate_predictions(predicted, 2).count == 2


@settings(max_examples=30, deadline=None)
@given(st.permutations(list(range(12))), st.integers(1, 5))
def test_the_result_does_not_depend_on_who_made_it(order: list[int], parts: int) -> None:
    generator = torch.Generator().manual_seed(3)
    p = torch.rand(12, 6, generator=generator).softmax(1)
    targets = torch.randint(0, 6, (12,), generator=generator)
    whole = predictions(p.tolist(), targets.tolist())
    gathered = merge_predictions([whole.take(torch.tensor(order[i::parts])) for i in range(parts)])
    assert gathered.keys == whole.keys
    first, second = evaluate_predictions(whole, 6), evaluate_predictions(gathered, 6)
    assert (first.top1, first.loss, first.calibration_error) == (
        second.top1, second.loss, second.calibration_error,
    )  # fmt: skip
    assert torch.equal(first.confusion, second.confusion)


def test_a_rank_without_validation_samples_takes_part(tmp_path: Path) -> None:
    """As with a split of one batch, which is one rank's."""
    run_ranks(gather_rank, 2, str(tmp_path), limit_s=60)
    assert (tmp_path / "keys").read_text() == "a b"
