"""``python -m hybrid_mobilenet`` is the command line."""

from .cli.app import main

main()
