"""`python -m exhaust.cli`, the same as `exhaust`."""

import sys

from exhaust.cli.commands import main

sys.exit(main())
