"""JPEGs like ImageNet's, from photographs and textures that packages ship."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def make_images(count: int) -> Iterator[bytes]:
    """Crops at their own resolution of scikit-learn's two photographs (china, flower) and of four
    of scikit-image's pictures (motorcycle, immunohistochemistry, grass, gravel), about 480 x 415
    pixels, JPEG quality 90 to 97: 0.20 megapixels and 96 kB in the mean; ImageNet's are about 0.2
    megapixels and 110 kB."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = [
        *load_sample_images().images,
        data.stereo_motorcycle()[0],
        data.immunohistochemistry(),
    ]
    textures = [np.stack([grey] * 3, axis=2) for grey in (data.grass(), data.gravel())]
    photographs = [Image.fromarray(array) for array in (*arrays, *textures)]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width = min(photograph.width, int(random.integers(440, 520)))
        height = min(photograph.height, int(random.integers(370, 460)))
        left = int(random.integers(0, photograph.width - width + 1))
        top = int(random.integers(0, photograph.height - height + 1))
        buffer = io.BytesIO()
        crop = photograph.crop((left, top, left + width, top + height))
        crop.save(buffer, "JPEG", quality=int(random.integers(90, 98)))
        yield buffer.getvalue()
