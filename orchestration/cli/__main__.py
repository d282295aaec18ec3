"""`python -m orchestration.cli`: how a submitted job begins, where no command is installed."""

from orchestration.cli.app import main

main()
