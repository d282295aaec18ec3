"""Names that a job may use, apart from the modules that import torch."""

OPTIMIZER_NAMES = ("rmsprop_tf", "sgd", "adamw")
SCHEDULE_NAMES = ("staircase", "cosine", "step", "constant")
LR_SCALINGS = ("none", "linear", "sqrt")
PRECISIONS = ("auto", "fp32", "bf16")
