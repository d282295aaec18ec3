"""`make bench-model`: one training step of inception_v3, ours beside torchvision's.

Both work the same 32 images of 299 px in one process, turn by turn: torchvision's model in its
default layout with torch.optim.RMSprop, ours as a run trains it (channels last, TensorFlow's
RMSProp on grouped tensors, clipping, the gradient's norm). The steps' medians and the medians'
ratios are told; a single machine's seconds mean little.

Profile of our step (2 cores, float32): convolutions take 67 %, two thirds of it backward, batch
norm 13 %, pools 7 %, the optimizer too little to be listed. Nearly all of the difference is the
layout: channels last, torchvision's model is as fast as ours.
"""

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.loading.batch import MicroBatch
from inception.family import build_architecture
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import to_device_format
from inception.reduction import StepReduction
from inception.step import train_step
from inception.tree_sum import TreeSum
from orchestration.cli.tables import print_json
from tests.bench.bare_import import without_init

PIXELS, BATCH, CLASSES = 299, 32, 1000
LR, DECAY, MOMENTUM, EPS, WEIGHT_DECAY = 0.045, 0.9, 0.9, 1.0, 4e-5
Step = Callable[[Tensor, Tensor], None]


def torchvisions(*, is_channels_last: bool) -> Step:
    without_init("torchvision", "torchvision.models", "torchvision.transforms")
    presets = types.ModuleType("torchvision.transforms._presets")
    presets.ImageClassification = object  # type: ignore[attr-defined]
    sys.modules[presets.__name__] = presets
    from torchvision.models.inception import Inception3

    model: nn.Module = Inception3(num_classes=CLASSES, init_weights=False).train()
    if is_channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=LR, alpha=DECAY, eps=EPS, momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )  # fmt: skip

    def step(images: Tensor, targets: Tensor) -> None:
        x = images.float().div_(127.5).sub_(1)
        x = x if is_channels_last else x.contiguous()
        optimizer.zero_grad()
        logits, side = model(x)
        loss = F.cross_entropy(logits, targets, label_smoothing=0.1)
        loss = loss + 0.4 * F.cross_entropy(side, targets, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ours() -> Step:
    model = build_network(build_architecture("inception_v3", num_classes=CLASSES))
    to_device_format(model, torch.device("cpu"))
    optimizer = build_optimizer(model.train(), name="rmsprop_tf", lr=LR, weight_decay=WEIGHT_DECAY)
    reduction = StepReduction(model, TreeSum.of(1, 1), 0)

    def step(images: Tensor, targets: Tensor) -> None:
        batch = MicroBatch(
            index=0,
            images=images,
            targets=targets,
            weights=torch.ones(len(targets)),
            samples=torch.zeros(len(targets), 2, dtype=torch.int64),
            mirrored=torch.zeros(len(targets), dtype=torch.bool),
        )
        train_step(model, optimizer, [batch], reduction, seed=0, step=0, clip_norm=2.0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    progress = Console(stderr=True, highlight=False)
    images = torch.randint(0, 256, (BATCH, PIXELS, PIXELS, 3), dtype=torch.uint8).permute(
        0, 3, 1, 2
    )
    targets = torch.randint(0, CLASSES, (BATCH,))
    steps = {
        "torchvision": torchvisions(is_channels_last=False),
        "torchvision, channels last": torchvisions(is_channels_last=True),
        "rayception": ours(),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):  # the first warms up
        for name, step in steps.items():
            began = time.perf_counter()
            step(images, targets)
            if number:
                times[name].append(time.perf_counter() - began)
                progress.print(f"{number}/{options.rounds} {name}: {times[name][-1]:.2f} s")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    ratios = {name: medians[name] / medians["rayception"] for name in steps}
    if options.json:
        print_json({"median_s": medians, "ratio": ratios})
        return
    table = Table(
        "a step", "s", "images/s", "rayception is",
        title=f"{BATCH} images of {PIXELS} px, {torch.get_num_threads()} threads",
    )  # fmt: skip
    for name, median in medians.items():
        ratio = "" if name == "rayception" else f"{ratios[name]:.2f} times as fast"
        table.add_row(name, f"{median:.2f}", f"{BATCH / median:.2f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
