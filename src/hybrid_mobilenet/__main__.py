"""``python -m hybrid_mobilenet`` is the command line."""

from .cli import main

main()
