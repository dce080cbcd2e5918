"""`python -m locoprop_lightning` is the command `locoprop`."""

from locoprop_lightning.cli import main

main()
