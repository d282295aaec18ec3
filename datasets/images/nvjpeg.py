"""JPEGs decoded on the GPU, by nvImageCodec's nvJPEG: for nodes whose processors cannot keep up.

The crop alone is decoded, resized on the device and written right into the batch there. Whatever
nvJPEG does not take (PNG, WebP, CMYK, damage) is decoded on the CPU, which also says what is wrong
with it. nvJPEG reconstructs chroma in its own way, so pixels differ a little from the CPU's: the
decoder belongs to the job, like the crop's size.
"""

from collections.abc import Callable
from functools import partial
from threading import local
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import LoaderError
from datasets.images.decode import JPEG_MAGIC, MAX_PIXELS, decode_image
from datasets.images.region import Box


class _Thread(local):
    """Made anew in each thread: two threads on one decoder got each other's pixels a few times in
    a thousand images (seen with 0.9 on its CPU backend)."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.decoder = make()


class GpuDecoder:
    """One rank's decoder on its device. Threads may share it.

    device cpu is the library's own CPU backend, which the tests run. Raises LoaderError where
    nvImageCodec is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise LoaderError(
                "data.decoder: got nvjpeg, but nvImageCodec is not installed on this node; it "
                "decodes there. Run pip install 'nvidia-nvimgcodec-cu12[nvjpeg]' (-cu13 with a "
                "CUDA 13 torch), or leave data.decoder out."
            ) from error
        self.device = device
        self._codec: Any = nvimgcodec
        kinds = [nvimgcodec.CPU_ONLY]
        device_id = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
        if device.type == "cuda":
            kinds = [nvimgcodec.HW_GPU_ONLY, nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU]
            device_id = device.index or 0
        self._thread = _Thread(
            partial(
                nvimgcodec.Decoder,
                device_id=device_id,
                max_num_cpu_threads=1,
                backends=[nvimgcodec.Backend(kind) for kind in kinds],
            )
        )

    def resize_into(
        self,
        target: Tensor,
        content: bytes | memoryview,
        choose: Callable[[int, int], Box],
        where: str,
    ) -> None:
        """The crop that choose(height, width) names into `target`, uint8 (1, 3, S, S) on the
        device. Raises ImageError."""
        crop = self._crop(bytes(content), choose)
        if crop is None:
            image = decode_image(content, where)
            top, left, height, width = choose(image.shape[0], image.shape[1])
            part = np.ascontiguousarray(image[top : top + height, left : left + width])
            crop = torch.from_numpy(part).to(self.device)
        batch = crop.permute(2, 0, 1)[None].float()  # (1, 3, h, w); no uint8 kernel on CUDA
        resized = F.interpolate(
            batch, size=target.shape[2:], mode="bilinear", antialias=True, align_corners=False
        )  # (1, 3, S, S)
        target.copy_(resized.round_().clamp_(0, 255))

    def _crop(self, content: bytes, choose: Callable[[int, int], Box]) -> Tensor | None:
        """uint8 (h, w, 3) on the device; None for what the library does not take."""
        if content[:2] != JPEG_MAGIC:
            return None
        stream = 0
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device).cuda_stream
        try:
            code = self._codec.CodeStream(content)
            if code.height * code.width > MAX_PIXELS or code.num_channels != 3:
                return None
            top, left, height, width = choose(code.height, code.width)
            region = self._codec.Region(top, left, top + height, left + width)
            image = self._thread.decoder.decode(
                code.get_sub_code_stream(region=region), cuda_stream=stream
            )
        except (RuntimeError, ValueError):
            return None
        if image is None:
            return None
        if self.device.type == "cuda":
            return torch.as_tensor(image, device=self.device)  # by its __cuda_array_interface__
        return torch.from_numpy(np.array(image))
