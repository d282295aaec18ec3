"""Plots, tables and pages of a run.

| module | what it holds |
|---|---|
| plots | data to PNG |
| html | data to self-contained HTML pages |
| scorecard | the metrics and tables of an evaluation |
| run_report | the artifacts of a run, by their path in MLflow |
"""
