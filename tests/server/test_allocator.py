"""What is freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Many blocks of a size that the library keeps, with some in between that stay, as buffers of a connection do.
SCRIPT = """
import psutil
from server.allocator import give_back, keep_little
keep_little()
before = psutil.Process().memory_info().rss
blocks = [bytearray(100_000) for _ in range(2000)]
for block in blocks:
    block[::4096] = b"x" * len(block[::4096])
kept = blocks[::100]
del blocks, block
give_back()
print((psutil.Process().memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory on macOS counts what may be taken away")
def test_what_is_free_between_what_is_kept_is_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 20
