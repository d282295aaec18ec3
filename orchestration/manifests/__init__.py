"""Renders a job as a manifest for a cluster manager. Pure.

| module | what it holds |
|---|---|
| nodes | a job's nodes, as Ray and cloud providers describe them |
| kuberay | a RayJob for KubeRay |
| ray_up | a cluster configuration for `ray up` |
| compose | a compose file for Docker |
"""
