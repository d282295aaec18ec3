"""What a logged model sees of an image file is what training and `predict` see of it."""

import warnings

import numpy as np
import pytest

from datasets.images.decode import decode_image
from orchestration.tracking.served import decode
from tests.unit.datasets.reports.pictures import BROKEN_EXIF, JPEG, READ, REFUSED, with_exif


@pytest.mark.parametrize("kind", READ)
def test_pixels_are_those_of_training(kind: str) -> None:
    content = READ[kind][0]
    assert np.array_equal(np.asarray(decode(content, "row 0")), decode_image(content, "x"))


# PIL alone, which is what a logged model has, takes it: all its pixels are there.
LENIENT = {"JPEG with a trailer for its end"}


@pytest.mark.parametrize("kind", sorted(set(REFUSED) - LENIENT))
def test_what_is_no_image_is_one_line(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^row 0: got .*") as caught:
        decode(REFUSED[kind][0], "row 0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BROKEN_EXIF)
def test_broken_exif_is_no_other_error(kind: str) -> None:
    """python-pillow/Pillow#8965 and its siblings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode(with_exif(JPEG, BROKEN_EXIF[kind]), "row 0")
        except ValueError:
            return
    assert sorted(image.size) == [48, 64]
