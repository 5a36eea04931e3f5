"""What the terminal shows; all of it on stderr, so that stdout stays for `--json`."""
