"""Mixup and CutMix: what is mixed is what the label says, whoever works the micro-batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inception.loss import inception_loss
from inception.mix import Mix, mix

KEYS = st.integers(0, 2**63 - 1)


def images(count: int = 6, size: int = 20) -> torch.Tensor:
    """Sample i is full of the number i + 1."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 3, size, size).clone()


@settings(max_examples=60, deadline=None)
@given(key=KEYS, alpha=st.floats(0.1, 5.0))
def test_mixup_is_the_weighted_sum_with_the_opposite(key: int, alpha: float) -> None:
    plain = images()
    mixed, share = mix(plain, Mix(mixup=alpha), key)
    assert 0 <= share <= 1
    assert torch.allclose(mixed, share * plain + (1 - share) * plain.flip(0), atol=1e-5)
    assert torch.equal(plain, images())  # the loader's tensor is not written


@settings(max_examples=60, deadline=None)
@given(key=KEYS, alpha=st.floats(0.1, 5.0))
def test_cutmix_share_is_the_part_of_the_pixels(key: int, alpha: float) -> None:
    plain = images()
    mixed, share = mix(plain, Mix(cutmix=alpha), key)
    own = (mixed == plain).float().mean(dim=(1, 2, 3))  # (6,)
    assert torch.allclose(own, torch.full((6,), share), atol=1e-6)
    assert bool(((mixed == plain) | (mixed == plain.flip(0))).all())


def test_the_key_alone_decides() -> None:
    how = Mix(mixup=0.2, cutmix=1.0)
    first, again, other = (mix(images(), how, key) for key in (7, 7, 8))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1] != other[1]
    shares = [mix(images(), how, key) for key in range(40)]
    cuts = sum(bool(((m == images()) | (m == images().flip(0))).all()) for m, _ in shares)
    assert 8 < cuts < 32  # each of both about half of the time


def test_off_is_nothing() -> None:
    plain = images()
    mixed, share = mix(plain, Mix(), 3)
    assert mixed is plain
    assert share == 1.0


def test_the_loss_of_mixed_images_is_the_labels_mixed() -> None:
    logits, targets = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the last sample is damaged
    mixed = inception_loss(logits, (), targets, weights=weights, own_share=0.7)
    log_p = logits.log_softmax(1)
    smooth = -(0.9 * log_p + 0.1 * log_p.mean(1, keepdim=True))
    by_hand = torch.zeros(())
    for i in range(4):
        own, partner = smooth[i, targets[i]], smooth[i, targets[3 - i]]
        by_hand += 0.7 * weights[i] * own + 0.3 * weights[3 - i] * partner
    assert float(mixed) == pytest.approx(float(by_hand) / 4, abs=1e-6)
