"""``python -m nnpcalc`` is the command `nnpcalc`."""

import sys

from nnpcalc.cli import main

if __name__ == "__main__":
    sys.exit(main())
