"""`python -m worldmodel` is the `worldmodel` command."""

import sys

from worldmodel.cli import main

sys.exit(main())
