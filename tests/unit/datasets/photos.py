"""Small real photographs as samples: crops of scikit-learn's two, in all usual formats."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from datasets.loading.stream import Sample


def photo_samples(count: int) -> Iterator[Sample]:
    """JPEGs of two classes; every tenth is a PNG, a grey or a CMYK JPEG."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        left, top = int(random.integers(0, 400)), int(random.integers(0, 200))
        width, height = int(random.integers(60, 240)), int(random.integers(60, 220))
        image = photographs[number % 2].crop((left, top, left + width, top + height))
        form, extension, format_ = ("RGB", "jpg", "JPEG")
        if number % 10 == 9:
            form, extension, format_ = (
                ("RGB", "png", "PNG"), ("L", "jpg", "JPEG"), ("CMYK", "jpg", "JPEG"),
            )[number // 10 % 3]  # fmt: skip
        buffer = io.BytesIO()
        image.convert(form).save(buffer, format_)
        yield {
            "__key__": f"{number:04d}",
            extension: buffer.getvalue(),
            "cls": str(number % 2).encode(),
        }
