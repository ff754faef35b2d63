"""Memory of training: the command line of :mod:`revbifpn.memory`, also installed as ``revbifpn-memory``."""

from __future__ import annotations

import sys

from revbifpn.memory.cli import main

if __name__ == "__main__":
    sys.exit(main())
