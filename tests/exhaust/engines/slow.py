"""Makes parts slowly on the nodes of a test's cluster, and leaves signs of life."""

import os
import time
from pathlib import Path
from typing import Any

from exhaust.engines.part import PartWork, Shared, try_part


def try_slowly(shared: Shared, work: PartWork) -> Any:
    folder = Path(os.environ["TEST_FOLDER"]) / "alive"
    folder.mkdir(exist_ok=True)
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        (folder / str(os.getpid())).touch()
        time.sleep(0.05)
    return try_part(shared, work)
