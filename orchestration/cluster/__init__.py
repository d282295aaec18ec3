"""A Ray cluster from outside: connections, checks, capacity, submissions.

| module | what it holds |
|---|---|
| signals | Ctrl-C, a termination and a closed terminal |
| connect | connecting to a running cluster, or to the embedded one |
| preflight | everything that must hold before training starts |
| node_probe | the checks that run on every node |
| capacity | which accelerators are free, and waiting for them |
| prestart | worker processes started before a worker group needs them |
| worker_imports | what such a process imports at its start |
| drain | announcing that a node will be taken away |
| jobs_api | the client of Ray's Jobs API |
| working_dir | the checkout: its commit and changes, what is uploaded of it |
| redaction | what of the checkout may be a secret |
| versions | package versions that must agree across machines |
"""
