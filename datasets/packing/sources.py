"""Real images that an installed package ships, as samples to pack."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from datasets.loading.stream import Sample
from datasets.order import permutation

DIGITS_TRAIN = 1437  # of 1,797: four fifths
_SPLIT = 16  # Philox stream of the split


def digits(split: str, *, seed: int = 0) -> tuple[Iterator[Sample], tuple[str, ...]]:
    """(samples, class names) of scikit-learn's digits: 8 x 8 grey PNGs, ten classes.

    split: "train" (1,437 images) or "val" (360), of one permutation keyed by `seed`.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = permutation(seed, _SPLIT, 0, 0, 0, len(images))
    chosen = order[:DIGITS_TRAIN] if split == "train" else order[DIGITS_TRAIN:]

    def samples() -> Iterator[Sample]:
        for number in chosen.tolist():
            # Pixels are 0..16; 255 / 16 spreads them over a byte.
            grey = np.round(images[number].reshape(8, 8) * (255 / 16)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(grey).save(buffer, "PNG")
            label = str(int(labels[number])).encode()
            yield {"__key__": f"digit-{number:04d}", "png": buffer.getvalue(), "cls": label}

    return samples(), tuple(str(digit) for digit in range(10))
