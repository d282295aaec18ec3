"""A logged classifier as MLflow loads it, from image bytes to a table of class names.

This file is stored with the model and runs without rayception: it imports only packages from the
model's requirements. Its preprocessing is that of datasets/images/decode.py and augment.py, so that
its predictions are those of `rayception predict`.
"""

import io
import json
import struct
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

TOP_K = 5
CHUNK = 32  # images in memory at a time
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 100_000_000  # against decompression bombs
PIL_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError,
              struct.error, Image.DecompressionBombError)  # fmt: skip


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Artifacts: `network`, a torch.export file from float32 (N, 3, S, S), RGB in -1..1, to logits
    (N, C), for any N; `model`, JSON with the C names, S and the crop."""

    def load_context(self, context: Any) -> None:
        settings = json.loads(Path(context.artifacts["model"]).read_text())
        self.classes: list[str] = settings["classes"]
        self.input_size: int = settings["input_size"]
        self.crop: float = settings["crop"]
        self.network = torch.export.load(context.artifacts["network"]).module()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """model_input: a column `image` of bytes (JPEG, PNG or WebP) -> a row for each image, with
        the same index: class, probability; classes, probabilities: the top five, most likely first.
        Raises ValueError, which names the row, for bytes that are no whole image."""
        images = list(model_input["image"])
        rows: list[tuple[str, float, list[str], list[float]]] = []
        for first in range(0, len(images), CHUNK):
            pixels = torch.cat(
                [
                    prepare(content, f"row {first + i}", self.crop, self.input_size)
                    for i, content in enumerate(images[first : first + CHUNK])
                ]
            )  # (n, 3, S, S)
            with torch.inference_mode():
                logits = self.network(pixels.to(torch.float32) / 127.5 - 1.0)  # (n, C)
            top = logits.softmax(1).topk(min(TOP_K, len(self.classes)), dim=1)
            for numbers, values in zip(top.indices.tolist(), top.values.tolist(), strict=True):
                names = [self.classes[number] for number in numbers]
                rows.append((names[0], values[0], names, values))
        columns = ["class", "probability", "classes", "probabilities"]
        return pd.DataFrame(rows, columns=columns, index=model_input.index)


def prepare(content: object, where: str, crop: float, size: int) -> Tensor:
    """The central square, `crop` of the shorter side, resized: uint8 (1, 3, size, size) RGB.

    Raises ValueError.
    """
    image = decode(content, where)
    side = max(1, round(min(image.height, image.width) * crop))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = np.array(image.crop((left, top, left + side, top + side)))  # (side, side, 3)
    pixels = torch.from_numpy(square).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def decode(content: object, where: str) -> Image.Image:
    """RGB, with EXIF orientation applied, alpha over white, and the upper 8 bits of 16-bit samples.

    Raises ValueError for bytes that are no whole image or too large.
    """
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ValueError(
            f"{where}: got {type(content).__name__}; a row's image is the bytes of a JPEG, PNG or "
            "WebP. Read the file, or send it in base64 where the request is JSON."
        )
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return as_rgb(ImageOps.exif_transpose(image))
    except PIL_ERRORS as error:
        raise ValueError(
            f"{where}: got {len(content)} bytes that are no whole image ({type(error).__name__}); "
            "a row's image is a JPEG, PNG or WebP. Replace it or leave the row out."
        ) from error
    raise ValueError(
        f"{where}: got {width} x {height} pixels; at most {MAX_PIXELS:,}. Shrink the image or "
        "leave the row out."
    )


def as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        upper = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(np.minimum(upper, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


mlflow.models.set_model(Classifier())
