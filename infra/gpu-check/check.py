"""Runs one part of the GPU check and prints its result as a line of JSON.

Run from the checkout's root.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

NETWORK = (
    "environment", "numerics", "torchvisions", "ours", "groups", "same_bits", "trained",
    "restarted", "compiled", "kernels", "syncs",
)  # fmt: skip
LOADER = ("data", "copies")
MODULES = dict.fromkeys(NETWORK, "network_parts") | dict.fromkeys(LOADER, "loader_parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=MODULES)
    parser.add_argument("--tiny", action="store_true", help="a dry run: small sizes, any device")
    parser.add_argument(
        "--kernels",
        choices=("deterministic", "fastest"),
        default="deterministic",
        help="as a run's model.deterministic",
    )
    options = parser.parse_args()
    sys.path[:0] = [os.getcwd(), str(Path(__file__).parent)]
    choose_kernels = importlib.import_module("inception.precision").choose_kernels
    choose_kernels(is_deterministic=options.kernels == "deterministic")
    part = getattr(importlib.import_module(MODULES[options.part]), options.part)
    start = time.perf_counter()
    result = part(options.tiny)
    print(json.dumps({options.part: result, "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
