"""The job's recipe: model, loss, optimizer, schedule. See job.py."""

import re
from dataclasses import dataclass, field

from inception.errors import unknown_name
from inception.family import MODEL_NAMES, Architecture, build_architecture, stage_names
from inception.options import Options
from inception.recipes import LR_SCALINGS, OPTIMIZER_NAMES, PRECISIONS, SCHEDULE_NAMES
from orchestration.errors import JobError
from orchestration.job.rules import OBJECT_URL, check_fields, redact_url

MAX_EPOCHS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The network. Its state dict uses torchvision's names."""

    # Number of classes, at least 2.
    num_classes: int = field(metadata={"min": 2})
    # Network of the Inception family: googlenet, bn_inception, inception_v2, inception_seed,
    # inception_v3 or inception_v4 (`rayception models` compares them).
    name: str = field(default="inception_v3", metadata={"choices": MODEL_NAMES})
    # Side of the square input, in pixels; the smallest depends on the network (inception_v3: 75).
    input_size: int = 299
    # Pretrained weights: the s3://, file:/// or https:// URL, without a query, of a .safetensors
    # file or of a torch.save state dict (.pt, .pth); heads for another number of classes start
    # anew. Left out: random weights.
    init_from: str | None = None
    # Last frozen stage, counted from the image; needs init_from. Weights and statistics up to it
    # stay as they are (`rayception models NAME` lists the stages). Left out: none is frozen.
    freeze_until: str | None = None
    # Factor of every layer's channels, 0.01 to 8; 1.0 is the published network.
    width: float = field(default=1.0, metadata={"range": (0.01, 8.0)})
    # Train with the network's auxiliary (side) heads, if it has any.
    side_head: bool = True
    # Dropout probability before the classifier, 0 to 0.99.
    dropout: float = field(default=0.2, metadata={"range": (0.0, 0.99)})
    # Batch norm's momentum, 1e-6 to 1, in torch's sense: the weight of the new batch (TensorFlow's
    # decay 0.9 is 0.1 here). 0.0003 suits long runs only.
    bn_momentum: float = field(default=0.1, metadata={"range": (1e-6, 1.0)})
    # Rows of a micro-batch that batch norm normalizes together, at least 2 (the paper: 32); a
    # divisor of data.micro_batch_size. Left out: the whole micro-batch.
    bn_group_size: int | None = field(default=None, metadata={"min": 2})
    # Use kernels that compute the same bits each time, as those of CPUs always do. Without them a
    # GPU may be faster, and no two runs are equal.
    deterministic: bool = True
    # `fp32`, `bf16`, or `auto`: bfloat16 if the device computes it fast, else float32.
    precision: str = field(default="auto", metadata={"choices": PRECISIONS})
    # Deviations from the named network (inception/options.py).
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.init_from is not None and not re.match(
            rf"{OBJECT_URL}\.(safetensors|pt|pth)$", self.init_from
        ):
            raise JobError(
                f"model.init_from: got {redact_url(self.init_from)!r}; "
                "the s3://, file:/// or https:// URL, without a query, of a .safetensors, .pt or "
                ".pth file. Write such a URL."
            )
        stages = stage_names(self.architecture())  # raises ModelError: the input is too small
        if self.freeze_until is not None:
            if self.init_from is None:
                raise JobError(
                    f"model.freeze_until: got {self.freeze_until} without model.init_from; "
                    "only pretrained weights are worth freezing. Set model.init_from."
                )
            if self.freeze_until not in stages:
                raise unknown_name("model.freeze_until", self.freeze_until, stages)

    def architecture(self) -> Architecture:
        """The description of this network. Raises ModelError."""
        return build_architecture(
            self.name,
            num_classes=self.num_classes,
            input_size=self.input_size,
            width=self.width,
            has_aux_heads=self.side_head,
            dropout=self.dropout,
            bn_momentum=self.bn_momentum,
            options=self.options,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Cross-entropy of the main and the auxiliary (side) heads."""

    # Probability mass that label smoothing spreads over all classes, 0 to 0.99.
    label_smoothing: float = field(default=0.1, metadata={"range": (0.0, 0.99)})
    # Weight of each side head's loss relative to the main one, 0 to 10; TensorFlow's is 0.4.
    side_weight: float = field(default=0.4, metadata={"range": (0.0, 10.0)})
    # Alpha of mixup within a micro-batch, 0 to 100; 0 is off. With cutmix as well, each micro-batch
    # takes one of the two.
    mixup: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    # Alpha of CutMix, as `mixup`.
    cutmix: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    # Reaction to a step with a loss that is not finite. `stop` ends the run; `skip` returns to the
    # checkpoint before it and leaves that step out, at most ten times.
    not_finite: str = field(default="stop", metadata={"choices": ("stop", "skip")})

    def __post_init__(self) -> None:
        check_fields(self, "loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """The optimizer, and the running average of the weights."""

    # `rmsprop_tf` (TensorFlow's RMSProp, which differs from torch's), `sgd` (Nesterov) or `adamw`.
    name: str = field(default="rmsprop_tf", metadata={"choices": OPTIMIZER_NAMES})
    # Peak learning rate, more than 0; see lr_scaling.
    lr: float = field(default=0.045, metadata={"above": 0.0})
    # How the learning rate follows data.global_batch_size. `none`: it does not; `linear`, `sqrt`:
    # `lr` is for a global batch of lr_batch_size, and is scaled by the ratio or its square root.
    lr_scaling: str = field(default="none", metadata={"choices": LR_SCALINGS})
    # Global batch size that `lr` is for if lr_scaling is linear or sqrt, at least 1.
    lr_batch_size: int = field(default=256, metadata={"min": 1})
    # Momentum of rmsprop_tf and sgd, 0 to 0.9999.
    momentum: float = field(default=0.9, metadata={"range": (0.0, 0.9999)})
    # Decay of the mean square (rmsprop_tf), 0 to 0.9999.
    decay: float = field(default=0.9, metadata={"range": (0.0, 0.9999)})
    # Term inside the square root (rmsprop_tf), more than 0.
    eps: float = field(default=1.0, metadata={"above": 0.0})
    # Weight decay, 0 to 1, on weights of convolutions and fully connected layers only.
    weight_decay: float = field(default=4e-5, metadata={"range": (0.0, 1.0)})
    # Largest global norm of the gradient, more than 0; left out, the gradient is not clipped.
    clip_norm: float | None = field(default=None, metadata={"above": 0.0})
    # Decay of the running average of the weights, 0 to 0.999999; null: no average.
    average_decay: float | None = field(default=0.9999, metadata={"range": (0.0, 0.999999)})

    def __post_init__(self) -> None:
        check_fields(self, "optim")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The learning rate over the epochs: linear warm-up, then the named schedule."""

    # Length of training in epochs, more than 0, at most 100,000; a fraction is allowed.
    epochs: float = field(metadata={"above": 0.0})
    # `constant`, `staircase` (x decay every every_epochs), `step` (x decay at each of milestones)
    # or `cosine` (to zero at the last epoch).
    name: str = field(default="staircase", metadata={"choices": SCHEDULE_NAMES})
    # Factor of staircase and step, 1e-6 to 1.
    decay: float = field(default=0.94, metadata={"range": (1e-6, 1.0)})
    # Epochs between the decays of staircase, more than 0.
    every_epochs: float = field(default=2.0, metadata={"above": 0.0})
    # Epochs at which step decays, in rising order; required for step, empty for the others.
    milestones: tuple[float, ...] = ()
    # Epochs of linear warm-up from a tenth of the rate, from 0 to less than `epochs`.
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "schedule")
        if self.epochs > MAX_EPOCHS:  # a plan lists the end of each
            raise JobError(
                f"schedule.epochs: got {self.epochs:g}; at most {MAX_EPOCHS:,}. Write a smaller "
                "number."
            )
        if bool(self.milestones) != (self.name == "step") or (
            list(self.milestones) != sorted(set(self.milestones))
        ):
            raise JobError(
                f"schedule.milestones: got {list(self.milestones)} with schedule.name {self.name}; "
                "a step schedule has rising epochs, the others have none. Write, for example, "
                "[30, 60, 80]."
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise JobError(
                f"schedule.warmup_epochs: got {self.warmup_epochs}; from 0 to less than "
                f"schedule.epochs ({self.epochs}). Write a smaller number."
            )
