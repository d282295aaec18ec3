"""What the submitting machine passes to the cluster's processes, and the versions that must agree
on all machines of a job, because they exchange pickles."""

import platform
from importlib.metadata import version

ON_CLUSTER = "cluster.address=auto"  # the override with which a job runs where it was submitted to
VERSIONS_VARIABLE = "RAYCEPTION_VERSIONS"  # the versions of the submitting machine, as JSON
DASHBOARD_VARIABLE = "RAYCEPTION_DASHBOARD"  # the dashboard's URL, as that machine reaches it


def versions() -> dict[str, str]:
    """Of Python, Ray and torch here. Patch levels of Python and builds of torch (+cpu, +cu128) are
    left out: they may differ."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "ray": version("ray"),
        "torch": version("torch").partition("+")[0],
    }


def version_differences(left: dict[str, str], right: dict[str, str]) -> list[str]:
    """For example `torch 2.13.0 against 2.12.1`."""
    return [
        f"{name} {left[name]} against {right[name]}"
        for name in left
        if name in right and left[name] != right[name]
    ]
