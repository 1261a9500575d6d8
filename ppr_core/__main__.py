"""Run the command line as `python -m ppr_core`."""

import sys

from ppr_core.cli.main import main

sys.exit(main())
