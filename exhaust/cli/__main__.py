"""`python -m exhaust.cli`, the same as `exhaust`."""

import sys

from exhaust.cli.arguments import main

sys.exit(main())
