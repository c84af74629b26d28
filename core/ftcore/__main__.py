"""`python -m ftcore`, as launchers of several processes need it."""

from ftcore.cli import main

main()
