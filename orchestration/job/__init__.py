"""The job YAML and everything derived from it. Pure, except for reading files.

| module | what it holds |
|---|---|
| job | `Job`, the whole file |
| data, recipe, cluster | its sections |
| rules | checks of single values |
| load | YAML and overrides to `Job`, and back |
| yaml_text | mistakes in the text of a YAML file |
| plan | every number derived from a job and the size of its data |
| accelerators | GPU types and their names in Ray |
"""
