"""``python -m fttt`` is the command ``fttt``."""

from fttt.cli import main

if __name__ == "__main__":
    main()
