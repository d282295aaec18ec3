"""Mixup and CutMix: labels have the pixels' shares, on whichever rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inception.loss import inception_loss
from inception.mix import MixConfig, mix

KEYS = st.integers(0, 2**63 - 1)


def images(count: int = 6, size: int = 20) -> torch.Tensor:
    """Every pixel of sample i is i + 1."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 3, size, size).clone()


@settings(max_examples=60, deadline=None)
@given(key=KEYS, alpha=st.floats(0.1, 5.0))
def test_mixup_is_the_weighted_sum_with_the_opposite(key: int, alpha: float) -> None:
    plain = images()
    mixed, lam = mix(plain, MixConfig(mixup=alpha), key)
    assert 0 <= lam <= 1
    assert torch.allclose(mixed, lam * plain + (1 - lam) * plain.flip(0), atol=1e-5)
    assert torch.equal(plain, images())  # the loader's tensor is unchanged


@settings(max_examples=60, deadline=None)
@given(key=KEYS, alpha=st.floats(0.1, 5.0))
def test_cutmix_share_is_the_part_of_the_pixels(key: int, alpha: float) -> None:
    plain = images()
    mixed, lam = mix(plain, MixConfig(cutmix=alpha), key)
    unchanged = (mixed == plain).float().mean(dim=(1, 2, 3))  # (6,)
    assert torch.allclose(unchanged, torch.full((6,), lam), atol=1e-6)
    assert bool(((mixed == plain) | (mixed == plain.flip(0))).all())


def test_the_key_alone_decides() -> None:
    config = MixConfig(mixup=0.2, cutmix=1.0)
    first, again, other = (mix(images(), config, key) for key in (7, 7, 8))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1] != other[1]
    results = [mix(images(), config, key) for key in range(40)]
    cuts = sum(bool(((m == images()) | (m == images().flip(0))).all()) for m, _ in results)
    assert 8 < cuts < 32  # about half are CutMix


def test_off_is_nothing() -> None:
    plain = images()
    mixed, lam = mix(plain, MixConfig(), 3)
    assert mixed is plain
    assert lam == 1.0


def test_the_loss_of_mixed_images_is_the_labels_mixed() -> None:
    logits, targets = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the last sample is damaged
    mixed = inception_loss(logits, (), targets, weights=weights, lam=0.7)
    log_p = logits.log_softmax(1)
    smooth = -(0.9 * log_p + 0.1 * log_p.mean(1, keepdim=True))
    expected = torch.zeros(())
    for i in range(4):
        loss, partner_loss = smooth[i, targets[i]], smooth[i, targets[3 - i]]
        expected += 0.7 * weights[i] * loss + 0.3 * weights[3 - i] * partner_loss
    assert float(mixed) == pytest.approx(float(expected) / 4, abs=1e-6)
