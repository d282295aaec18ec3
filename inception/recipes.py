"""Names that a job may use, for modules that must not import torch."""

OPTIMIZER_NAMES = ("rmsprop_tf", "sgd", "adamw")
SCHEDULE_NAMES = ("staircase", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
