"""What a run keeps in its storage folder, and how it is read and written.

| module | what it holds |
|---|---|
| record | `run.json`: name, job, classes, MLflow ids |
| checkpoint | checkpoints: written whole, verified when read |
| digest | a training state's digest: equal digests, equal bits |
| lease | `driver.json`: which driver owns the run |
| timeline | `timeline.json`: attempts, goodput and rank hours |
| progress | a progress report and its log line |
| phases | seconds of each phase of a run |
| predictions_file | the final network's predictions on the validation split |
| metrics | which metric is a run's top-1 accuracy |
| storage | the job's object store, for our client and for Ray Train |
"""
