"""The run of all benchmarks, on stand-in scripts."""

import json
from pathlib import Path
from runpy import run_path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "__main__.py"
MODULE = run_path(str(SOURCE), run_name="benchmarks_main")
Benchmark, Figure, main = MODULE["Benchmark"], MODULE["Figure"], MODULE["main"]

GOOD = """
import json, sys
from pathlib import Path
assert sys.argv[1] == "--rounds" and sys.argv[3] == "--json"
Path(sys.argv[4]).write_text(json.dumps({"ratio": [1.0, 3.0, int(sys.argv[2])], "peak": {"gib": 9}}))
"""


@pytest.fixture
def scripts(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("raise SystemExit('no')")
    (tmp_path / "silent.py").write_text("")
    return tmp_path


def benchmark(name):
    figures = (
        Figure("the ratio", ("ratio",), at_least=1.5),
        Figure("the peak", ("peak", "gib"), at_most=8),
        Figure("just a number", ("peak", "gib")),
        Figure("of a peer", ("peers", 0), at_least=1),
    )
    return Benchmark(name, f"what {name} is about", ("--rounds", "2"), figures)


def test_goes_on_after_a_failure_and_says_it_all_in_the_end(scripts, capfd):
    names = ("broken", "silent", "good")
    output = scripts / "deep" / "output"
    assert main(["--output", str(output)], [benchmark(name) for name in names], scripts) == 1
    out = capfd.readouterr().out
    assert [f"== {name}: what {name} is about" in out for name in names] == [True] * 3
    rows = [line.split() for line in out[out.index("benchmark  ") :].splitlines()]
    assert rows == [
        ["benchmark", "what", "found", "target", "holds"],
        ["broken", "FAILED", "to", "run"],
        ["silent", "FAILED", "to", "run"],
        ["good", "the", "ratio", "2.00", ">=", "1.5", "yes"],
        ["good", "the", "peak", "9.00", "<=", "8", "NO"],
        ["good", "just", "a", "number", "9.00"],
        ["good", "of", "a", "peer", "missing", ">=", "1"],
    ]
    assert json.loads((output / "good.json").read_text())["peak"] == {"gib": 9}


def test_a_missed_target_is_no_failure(scripts, capfd):
    assert main(["--only", "good"], [benchmark("good"), benchmark("broken")], scripts) == 0
    assert "broken" not in capfd.readouterr().out


def test_list_runs_nothing(scripts, capfd):
    assert main(["--list"], [benchmark("broken")], scripts) == 0
    assert capfd.readouterr().out.split() == ["broken", "what", "broken", "is", "about", "(--rounds", "2)"]


def test_every_benchmark_is_a_script_that_takes_its_arguments(capfd):
    for each in MODULE["BENCHMARKS"]:
        text = (SOURCE.parent / f"{each.name}.py").read_text()
        flags = [argument for argument in each.arguments if argument.startswith("--")]
        assert all(f'"{flag}"' in text for flag in [*flags, "--json"]), each.name
