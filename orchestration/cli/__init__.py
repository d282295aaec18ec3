"""x"""

from orchestration.cli.app import main as main
