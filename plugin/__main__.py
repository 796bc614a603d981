"""`python -m plugin` is `hlip`."""

from plugin.cli import main

main()
