"""One run, from a connected cluster to its final status in MLflow; and sweeps of runs.

| module | what it holds |
|---|---|
| driver | `drive`: the whole run, step by step |
| run | the request, the run, and the data that its plan follows from |
| run_start | how a run starts, resumes and, if incomplete, ends in MLflow |
| run_end | what a completed run leaves in MLflow |
| attempts | the worker groups of a run, one after another |
| retry_policy | which failures are retried, and how often |
| controller | Ray Train's controller inside the driver process |
| node_watcher | drained nodes, new capacity and a lost lease, watched during training |
| attempt_history | the record of attempts in storage and in MLflow |
| preparation | the driver's own work during training |
| sweep | the trials of a sweep and their summary |
| sweep_submissions | trials as concurrent submissions on one cluster |
"""
