"""``python -m fttt.cli``: the same as the command ``fttt``."""

from fttt.cli import main

main()
