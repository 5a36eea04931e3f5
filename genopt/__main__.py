"""`python -m genopt` is the `genopt` command."""

from genopt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
