"""A small disk of a folder's own, which a campaign fills."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WHOLE_MIB = 4096


class Disk:
    """A file system in memory, mounted at the folder where this process may mount."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filler = folder / "filler"
        self.is_mounted = False

    @contextmanager
    def mounted(self) -> Iterator["Disk"]:
        command = ["mount", "-t", "tmpfs", "-o", f"size={WHOLE_MIB}m,mode=755", "tmpfs"]
        mount = subprocess.run([*command, str(self._folder)], capture_output=True, check=False)
        self.is_mounted = mount.returncode == 0
        try:
            yield self
        finally:
            if self.is_mounted:
                subprocess.run(["umount", "-l", str(self._folder)], check=False)

    def fill(self) -> None:
        """Leaves nothing free: makes the disk as small as it can be, and a file of the rest."""
        for spare in (1, 2, 4, 8, 16, 32):  # MiB; no disk becomes smaller than what is on it
            stats = os.statvfs(self._folder)
            used = (stats.f_blocks - stats.f_bfree) * stats.f_frsize
            with suppress(subprocess.CalledProcessError):
                self._resize(used // 2**20 + spare)
                break
        else:
            raise RuntimeError("The disk cannot be made as small as what is on it.")
        self.take_rest()

    def take_rest(self) -> None:
        """Takes what has become free since."""
        with suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(os.statvfs(self._folder).f_frsize))

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)
        self._resize(WHOLE_MIB)

    def _resize(self, mib: int) -> None:
        command = ["mount", "-o", f"remount,size={mib}m", str(self._folder)]
        subprocess.run(command, capture_output=True, check=True)
