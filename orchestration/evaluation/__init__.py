"""Trained networks: scoring them, predicting with them, exporting them.

| module | what it holds |
|---|---|
| trained | a trained network, loaded from a checkpoint or an exported file |
| evaluate | scoring checkpoints on the workers of a cluster |
| evaluate_run | one evaluation, from its checkpoints to its MLflow run |
| export | safetensors, torch.export and ONNX files |
"""
