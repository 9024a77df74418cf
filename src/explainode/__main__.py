"""`python -m explainode` is the console script."""

import sys

from explainode.cli.main import main

sys.exit(main())
