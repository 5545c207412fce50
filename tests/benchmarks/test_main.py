"""The run of all benchmarks, on stand-in scripts, and the table."""

import json
import re
from pathlib import Path
from runpy import run_path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "__main__.py"
MODULE = run_path(str(SOURCE), run_name="benchmarks_main")
Benchmark, main = MODULE["Benchmark"], MODULE["main"]
RESULTS = SOURCE.parent / "results"

GOOD = """
import json, sys
from pathlib import Path
assert sys.argv[1] == "--rounds" and sys.argv[3] == "--json"
Path(sys.argv[4]).write_text(json.dumps({"model": "gpt303", "results": [
    {"how": "pieces", "context": 8192, "peak_gib": 3 + int(sys.argv[2])}], "command": " ".join(sys.argv)}))
"""


@pytest.fixture
def scripts(tmp_path):
    (tmp_path / "context_memory.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("raise SystemExit('no')")
    (tmp_path / "silent.py").write_text("")
    return tmp_path


def benchmark(name, rounds=2):
    return Benchmark(name, f"what {name} is about", ("--rounds", str(rounds)))


def test_goes_on_after_a_failure_and_says_it_all_in_the_end(scripts, capfd):
    names = ("broken", "silent", "context_memory")
    output = scripts / "deep" / "output"
    assert main(["--output", str(output)], [benchmark(name) for name in names], scripts) == 1
    out = capfd.readouterr().out
    assert [f"== {name}: what {name} is about" in out for name in names] == [True] * 3
    assert "broken FAILED to run" in out and "silent FAILED to run" in out
    assert out.splitlines()[-3].split("  ")[0] == "a window of 8192 tokens, gpt303"
    assert "5 GiB" in out and "yes" in out
    text = (output / "bench_cpu.md").read_text()
    assert "| a window of 8192 tokens, gpt303 | 5 GiB |  |  |  | ≤ 8 | yes |" in text
    assert "`python benchmarks/context_memory.py --rounds 2`" in text and "cores" in text
    assert text.count("not measured") == 4


def test_what_ran_earlier_stays_in_the_table(scripts):
    output = scripts / "output"
    assert main(["--output", str(output), "--only", "broken"], [benchmark("broken"), benchmark("context_memory")]) == 1
    both = [benchmark("broken"), benchmark("context_memory", 7)]
    assert main(["--output", str(output), "--only", "context_memory"], both, scripts) == 0
    entries = json.loads((output / "bench_cpu.json").read_text())
    assert list(entries) == ["broken", "context_memory"] and entries["broken"]["found"] is None
    assert entries["context_memory"]["found"]["command"] == "benchmarks/context_memory.py --rounds 7"
    assert "NO: 125% of it" in (output / "bench_cpu.md").read_text()  # a missed target is no failure


def test_list_runs_nothing(scripts, capfd):
    assert main(["--list"], [benchmark("broken")], scripts) == 0
    assert capfd.readouterr().out.split() == ["broken", "what", "broken", "is", "about", "(--rounds", "2)"]


def test_every_benchmark_is_a_script_that_takes_its_arguments():
    for each in MODULE["BENCHMARKS"]:
        text = (SOURCE.parent / f"{each.name}.py").read_text()
        flags = [argument for argument in each.arguments if argument.startswith("--")]
        assert all(f'"{flag}"' in text for flag in [*flags, "--json"]), each.name


def test_every_script_is_in_the_table_or_needs_a_gpu():
    scripts = {path.stem for path in SOURCE.parent.glob("*.py")} - {
        "__main__",
        "contestants",
        "clients",
        "corpus",
        "readme",
        "table",
    }
    assert scripts - {each.name for each in MODULE["BENCHMARKS"]} == {"attention", "gpu_train"}


def test_rows_are_read_from_what_scripts_write():
    entries = json.loads((RESULTS / "bench_cpu.json").read_text())
    assert set(entries) <= {each.name for each in MODULE["BENCHMARKS"]} and entries
    assert (RESULTS / "bench_cpu.md").read_text() == MODULE["page"](entries)


def test_what_is_kept_names_no_folder_of_the_machine_that_measured():
    assert not re.findall(r"/(?:tmp|home|root|Users)/\S+", (RESULTS / "bench_cpu.json").read_text())
