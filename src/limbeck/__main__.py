"""``python -m limbeck``, for where the command is not on the path."""

from limbeck.cli import main

main()
