"""The embedded object store, MLflow server and Ray of this machine.

| module | what it holds |
|---|---|
| local | starting, joining and stopping the stack |
| state | `stack.json`: ports, processes, secrets |
| services | the command line and readiness check of each service |
| certificate | the certificate of the store's parts |
| processes | processes identified by pid and start time |
| worker_pool | worker processes kept ready for the next run |
"""
