"""A conversion needs little memory beside the checkpoint's size; benchmarks/convert.py measures it at `large`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the memory of a process"),
]


def test_a_conversion_grows_by_less_than_the_checkpoint_both_ways_and_to_both(roomy_folder: Path) -> None:
    """The promise is 1.3 of the checkpoint, libraries included; this is the growth beyond the libraries."""
    program = Path(__file__).with_name("conversion_memory.py")
    done = subprocess.run(
        [sys.executable, str(program), str(roomy_folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    growth = json.loads(done.stdout)

    assert growth.pop("num_bytes") > 400e6
    print(growth)
    assert growth.keys() == {"transformers", "audiocraft", "both"}
    assert max(growth.values()) < 0.9, growth
