"""`python -m chunkd` is `chunkd`."""

from chunkd.cli import main

main(prog_name="chunkd")
