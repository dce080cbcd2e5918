"""`python -m tune` in a checkout is the command `locoprop-tune`."""

import sys

from locoprop_lightning.tune.__main__ import main

if __name__ == "__main__":
    print("python -m tune: is now called locoprop-tune.", file=sys.stderr)
    raise SystemExit(main())
