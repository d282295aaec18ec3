"""What a run keeps in its own storage, and how it is read and written.

| module | what it holds |
|---|---|
| record | `run.json`: name, job, classes, MLflow ids |
| checkpoint | checkpoints: written whole, verified when read |
| lease | which driver owns the run |
| timeline | attempts, goodput and rank hours |
| progress | one progress report, and its line of text |
| phases | seconds of each phase of a run |
| predictions_file | the final network's predictions on the validation split |
| metrics | what metric names mean |
| storage | the job's object store, for our client and for Ray |
"""
