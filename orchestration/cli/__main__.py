"""`python -m orchestration.cli`: for submitted jobs, on nodes where no command is installed."""

from orchestration.cli.app import main

main()
