"""The commands: parse, call, print. Nothing outside this package imports it.

| module | what it holds |
|---|---|
| app | the Typer application, `validate`, `plan` and `stack`; `main`, the entry point |
| run | `run`, `resume`, `fork`, `sweep` |
| submissions | `submit`, `status`, `logs`, `stop`, `list`, `drain`, `preflight` |
| runs | `ui`, `runs`, `compare`, `sync` |
| checkpoints | `evaluate`, `predict`, `export` |
| models | `models` |
| data | `verify`, `inspect`, and what every command on data shares |
| shards | `pack`, `index` |
| render | `render` |
| tables | output for people and for machines |
| panel | the live progress of a run |
"""

from orchestration.cli.app import main as main
