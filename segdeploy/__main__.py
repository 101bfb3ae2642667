"""`python -m segdeploy`."""

from segdeploy.cli import main

main()
