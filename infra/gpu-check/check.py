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

NETWORK = ("environment", "numerics", "torchvisions", "ours", "compiled", "kernels", "syncs")
LOADER = ("data", "copies")
MODULES = dict.fromkeys(NETWORK, "network_parts") | dict.fromkeys(LOADER, "loader_parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=MODULES)
    parser.add_argument("--tiny", action="store_true", help="a dry run: small sizes, any device")
    options = parser.parse_args()
    sys.path[:0] = [os.getcwd(), str(Path(__file__).parent)]
    part = getattr(importlib.import_module(MODULES[options.part]), options.part)
    start = time.perf_counter()
    result = part(options.tiny)
    print(json.dumps({options.part: result, "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
