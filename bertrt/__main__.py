"""``python -m bertrt``: the command line."""

import sys

from bertrt.commands.main import main

sys.exit(main())
