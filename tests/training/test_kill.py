"""A run killed with -9 at random instants, checkpoints being written included, ends as if nothing had happened."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
def test_twenty_random_kills_change_nothing():
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "20"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"20 kills \(-9\), (\d+) of them while a checkpoint was being written.*identical", done.stdout)
    assert found and int(found[1]) >= 5, done.stdout
