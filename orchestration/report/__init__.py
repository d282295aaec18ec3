"""Plots, tables and pages of a run.

| module | what it holds |
|---|---|
| plots | PNG plots |
| html | self-contained HTML pages, from templates/ |
| scorecard | metrics and tables of an evaluation |
| same_bits | whether runs computed the same bits |
| run_report | the files of a run's report, by their names in MLflow |
"""
