"""The job's recipe: model, loss, optimizer, schedule. See job.py."""

import re
from dataclasses import dataclass, field

from inception.errors import unknown_name
from inception.family import MODEL_NAMES, build_architecture, stage_names
from inception.options import Options
from inception.recipes import LR_SCALINGS, OPTIMIZER_NAMES, PRECISIONS, SCHEDULE_NAMES
from orchestration.errors import JobError
from orchestration.job.rules import above, at_least, choose, within, without_secrets


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The network. Its state dict has torchvision's names."""

    num_classes: int
    name: str = "inception_v3"
    # Pixels of a side of the square input.
    input_size: int = 299
    # A pretrained start: the URL (s3://, file://, https://) of a .safetensors file or of a state
    # dict of torch.save. Heads of another number of classes begin anew.
    init_from: str | None = None
    # Beside a pretrained start: the stages from the image up to this one keep their weights and
    # statistics (`rayception models NAME` lists the stages).
    freeze_until: str | None = None
    # Scales every layer's channels; 1.0 is the published network.
    width: float = 1.0
    side_head: bool = True
    dropout: float = 0.2
    # torch's sense: the share of the new batch in the running statistics (TensorFlow's decay
    # 0.9 is 0.1 here). 0.0003 suits long runs only.
    bn_momentum: float = 0.1
    # `auto`: bfloat16 where the device computes it fast, else float32.
    precision: str = "auto"
    # What the network has other than by its name (inception/options.py).
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        choose("model.name", self.name, MODEL_NAMES)
        if self.init_from is not None and not re.match(
            r"(s3://[^/]+/.+|file:///.+|https?://[^/@?]+/[^?]+)\.(safetensors|pt|pth)$",
            self.init_from,
        ):
            raise JobError(
                f"model.init_from: got {without_secrets(self.init_from)!r}; "
                "the s3://, file:/// or https:// URL, without a query, of a .safetensors, .pt or "
                ".pth file. Write it so."
            )
        choose("model.precision", self.precision, PRECISIONS)
        at_least("model.num_classes", self.num_classes, 2)
        within("model.dropout", self.dropout, 0.0, 0.99)
        within("model.bn_momentum", self.bn_momentum, 1e-6, 1.0)
        within("model.width", self.width, 0.01, 8.0)
        # The description knows its own smallest input, and says so by the error law.
        architecture = build_architecture(
            self.name,
            num_classes=self.num_classes,
            input_size=self.input_size,
            width=self.width,
            side_head=self.side_head,
            options=self.options,
        )
        if self.freeze_until is not None:
            if self.init_from is None:
                raise JobError(
                    f"model.freeze_until: got {self.freeze_until} without model.init_from; "
                    "weights that nobody trained are not worth keeping. Name a pretrained start."
                )
            if self.freeze_until not in stage_names(architecture):
                raise unknown_name(
                    "model.freeze_until", self.freeze_until, stage_names(architecture)
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    label_smoothing: float = 0.1
    # Weight of the side head's loss beside the main one (TensorFlow: 0.4).
    side_weight: float = 0.4
    # Alphas of mixup and CutMix, within a micro-batch; 0 is off. With both, each takes one of them.
    mixup: float = 0.0
    cutmix: float = 0.0
    # What a step whose loss is no finite number does to the run: `stop` ends it; `skip` goes back
    # to the checkpoint before and on without that step, MAX_SKIPPED times at most.
    not_finite: str = "stop"

    def __post_init__(self) -> None:
        choose("loss.not_finite", self.not_finite, ("stop", "skip"))
        within("loss.mixup", self.mixup, 0.0, 100.0)
        within("loss.cutmix", self.cutmix, 0.0, 100.0)
        within("loss.label_smoothing", self.label_smoothing, 0.0, 0.99)
        within("loss.side_weight", self.side_weight, 0.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """The optimizer. rmsprop_tf is TensorFlow's RMSProp, not torch's; sgd has Nesterov's moment."""

    name: str = "rmsprop_tf"
    lr: float = 0.045
    # none: `lr` is the job's rate; linear, sqrt: it is that of a global batch of lr_batch_size, and
    # grows with data.global_batch_size.
    lr_scaling: str = "none"
    lr_batch_size: int = 256
    momentum: float = 0.9
    # Decay of the mean square (rmsprop_tf) and the term under its root.
    decay: float = 0.9
    eps: float = 1.0
    # On weights of convolutions and fully connected layers only.
    weight_decay: float = 4e-5
    # Largest global norm of the gradient; left out, it is not clipped.
    clip_norm: float | None = None
    # Decay of the running average of the weights; left out, none is kept.
    average_decay: float | None = 0.9999

    def __post_init__(self) -> None:
        choose("optim.name", self.name, OPTIMIZER_NAMES)
        above("optim.lr", self.lr, 0.0)
        choose("optim.lr_scaling", self.lr_scaling, LR_SCALINGS)
        at_least("optim.lr_batch_size", self.lr_batch_size, 1)
        within("optim.momentum", self.momentum, 0.0, 0.9999)
        within("optim.decay", self.decay, 0.0, 0.9999)
        above("optim.eps", self.eps, 0.0)
        within("optim.weight_decay", self.weight_decay, 0.0, 1.0)
        if self.clip_norm is not None:
            above("optim.clip_norm", self.clip_norm, 0.0)
        if self.average_decay is not None:
            within("optim.average_decay", self.average_decay, 0.0, 0.999999)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The learning rate over the epochs: linear warm-up, then `name`."""

    epochs: float
    # constant, staircase (x `decay` every `every_epochs`), step (x `decay` at each of `milestones`)
    # or cosine (to zero).
    name: str = "staircase"
    decay: float = 0.94
    every_epochs: float = 2.0
    milestones: tuple[float, ...] = ()
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        choose("schedule.name", self.name, SCHEDULE_NAMES)
        above("schedule.epochs", self.epochs, 0.0)
        within("schedule.decay", self.decay, 1e-6, 1.0)
        above("schedule.every_epochs", self.every_epochs, 0.0)
        if bool(self.milestones) != (self.name == "step") or (
            list(self.milestones) != sorted(set(self.milestones))
        ):
            raise JobError(
                f"schedule.milestones: got {list(self.milestones)} with schedule.name {self.name}; "
                "a step schedule has rising epochs, the others none. Write such as [30, 60, 80]."
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise JobError(
                f"schedule.warmup_epochs: got {self.warmup_epochs}; from 0 to less than "
                f"schedule.epochs ({self.epochs}). Write a smaller number."
            )
