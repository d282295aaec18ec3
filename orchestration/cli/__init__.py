"""The commands: parse, call, print. Nothing outside this package imports it.

A command's parameters are its arguments and options; `print_result` prints what it computed.

| module | what it holds |
|---|---|
| app | the Typer application, `validate`, `plan` and `stack`; `main`, the entry point |
| run | `run`, `resume`, `fork`, `sweep` |
| submissions | `submit`, `status`, `logs`, `stop`, `list`, `drain`, `preflight` |
| runs | `ui`, `runs`, `compare`, `sync` |
| checkpoints | `evaluate`, `predict`, `export` |
| models | `models` |
| data | `verify`, `inspect`; arguments, options and connections that commands share |
| shards | `pack`, `index` |
| render | `render` |
| tables | what commands print, for people and as JSON |
| panel | the live progress of a run |
"""

from orchestration.cli.app import main as main
