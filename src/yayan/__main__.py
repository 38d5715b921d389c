"""`python -m yayan` is `yayan`."""

from yayan.cli import main

main()
