"""What a laptop tells the cluster that it sends a job to; the versions that must agree on every
machine of a job: what one pickles, another reads."""

import platform
from importlib.metadata import version

ON_CLUSTER = "cluster.address=auto"  # how a job that was sent names the cluster that it is on
VERSIONS = "RAYCEPTION_VERSIONS"  # environment variable: those of the laptop that sent a job
DASHBOARD = "RAYCEPTION_DASHBOARD"  # and the URL under which it reaches the cluster


def versions() -> dict[str, str]:
    """Of this process: Python (its minor version), Ray, torch. torch's build (+cpu, +cu128) may
    differ; Python's patch level too."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "ray": version("ray"),
        "torch": version("torch").partition("+")[0],
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """`torch 2.13.0 against 2.12.1`, for each that differs."""
    return [
        f"{name} {one[name]} against {other[name]}"
        for name in one
        if name in other and one[name] != other[name]
    ]
