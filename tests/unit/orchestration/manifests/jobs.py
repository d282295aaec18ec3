"""What the tests of all manifests share: the smallest job, and the form of an error."""

import re
from pathlib import Path

from orchestration.job.job import Job
from orchestration.job.load import load_job

# The error law: `<field path or file>: got <value>; <rule>. <what to do>.`
LAW = re.compile(r"^\S.*?: got .+; .+\. .+[.?]$")
SECRET_VALUE = "a-secret-value-that-travels-nowhere"
SMALLEST = """
name: mine
cluster: {address: auto}
data: {train: "s3://data/mine/train", val: "s3://data/mine/val", global_batch_size: 1024}
model: {num_classes: 10}
schedule: {epochs: 2}
storage: {region: us-east-1}
tracking: {uri: "http://mlflow:5000"}
"""
JOBS = {
    "cpu": ["cluster.accelerators=CPU:2"],
    "h100": ["cluster.accelerators=H100:8", "cluster.num_nodes=4", "cluster.cpus_per_worker=14"],
    "elastic": ["cluster.accelerators=H100:8", "cluster.num_nodes={min: 1, max: 4}"],
    "spot": ["cluster.accelerators=A100-80G:8", "cluster.use_spot=true"],
    "alternatives": ["cluster.accelerators=[H100:8,A100:8]", "cluster.num_nodes=2"],
    "secrets": ["cluster.secrets=[AWS_SECRET_ACCESS_KEY,MLFLOW_TRACKING_PASSWORD]"],
}
AMD = ["cluster.accelerators=MI300X:8"]


def make_job(folder: Path, overrides: list[str]) -> Job:
    path = folder / "job.yaml"
    path.write_text(SMALLEST)
    return load_job(path, overrides)
