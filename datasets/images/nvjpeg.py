"""JPEGs decoded on the GPU by nvImageCodec's nvJPEG, for nodes whose CPUs are too slow.

Only the crop is decoded; it is resized on the device, straight into the batch. What nvJPEG does not
take (PNG, WebP, CMYK, damaged files) is decoded on the CPU, which also reports the damage. nvJPEG
reconstructs chroma differently, so pixels differ a little from the CPU's: the choice of a decoder
is part of the job, like the crop's size.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import LoaderError
from datasets.images.decode import JPEG_MAGIC, MAX_PIXELS, decode_image
from datasets.images.region import ChooseBox, PerThread


class GpuDecoder:
    """One rank's decoder on its device, for any number of threads.

    device: cpu selects the library's CPU backend, for tests. Raises LoaderError if nvImageCodec is
    not installed.
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
        # Two threads on one decoder got each other's pixels a few times in a thousand images (seen
        # with 0.9 on its CPU backend).
        self._decoder = PerThread(
            partial(
                nvimgcodec.Decoder,
                device_id=device_id,
                max_num_cpu_threads=1,
                backends=[nvimgcodec.Backend(kind) for kind in kinds],
            )
        )

    def resize_into(
        self, target: Tensor, content: bytes | memoryview, choose: ChooseBox, where: str
    ) -> None:
        """Resizes the crop choose(height, width) into `target`, uint8 (1, 3, S, S) on the device.
        Raises ImageError."""
        crop = self._decode_crop(bytes(content), choose)
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

    def _decode_crop(self, content: bytes, choose: ChooseBox) -> Tensor | None:
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
            image = self._decoder.value.decode(
                code.get_sub_code_stream(region=region), cuda_stream=stream
            )
        except (RuntimeError, ValueError):
            return None
        if image is None:
            return None
        if self.device.type == "cuda":
            return torch.as_tensor(image, device=self.device)  # by its __cuda_array_interface__
        return torch.from_numpy(np.array(image))
