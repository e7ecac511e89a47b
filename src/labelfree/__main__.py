"""`python -m labelfree`: the command line."""

import sys

from labelfree.cli import main

sys.exit(main())
