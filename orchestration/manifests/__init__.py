"""A job as a manifest for a cluster manager. Pure.

| module | what it holds |
|---|---|
| nodes | what a job's nodes are, to Ray and to cloud providers |
| kuberay | a RayJob for KubeRay |
| ray_up | a cluster configuration for `ray up` |
| compose | a compose file for Docker |
"""
