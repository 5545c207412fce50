import os
import subprocess
import sys
from pathlib import Path

from gptstar.pipes import outliving_readers

ROOT = Path(__file__).resolve().parents[1]
WRITES = """
import sys
from gptstar.pipes import outliving_readers
with outliving_readers():
    for i in range(100_000):
        print("line", i, flush=i % 1000 == 0)
print("went on", file=sys.stderr)
"""


def test_who_writes_goes_on_when_nobody_reads():
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES], stdout=write, stderr=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}, text=True
    )
    os.close(write)
    assert os.read(read, 6) == b"line 0"
    os.close(read)
    assert process.communicate(timeout=60)[1] == "went on\n" and process.returncode == 0


def test_it_is_the_stream_it_stands_for_and_gone_afterwards(capsys):
    before = sys.stdout
    with outliving_readers():
        print("a")
        assert sys.stdout.encoding == before.encoding and sys.stdout.isatty() == before.isatty()
    assert sys.stdout is before and capsys.readouterr().out == "a\n"
