"""README says what was measured, and nothing else."""

import json

import pytest

from benchmarks.readme import HERE, README, WALK, quoted

ENTRIES = json.loads((HERE / "results" / "bench_cpu.json").read_text())


def test_readme_quotes_what_the_benchmarks_found():
    assert quoted(README.read_text(), ENTRIES) == README.read_text()


def test_other_figures_are_quoted_and_the_rest_stays():
    entries = json.loads(json.dumps(ENTRIES))
    entries["walk"]["found"]["seconds"] |= {name: 123 for name in WALK}
    entries["startup"]["commit"] = "0123456789ab"
    before, after = README.read_text(), quoted(README.read_text(), entries)
    assert after.count("| 123 s |") == len(WALK) and "commit 0123456789ab" in after
    assert after.splitlines()[:20] == before.splitlines()[:20] and after.splitlines()[-20:] == before.splitlines()[-20:]


def test_only_what_is_quoted_is_named():
    entries = json.loads(json.dumps(ENTRIES))
    for name, revision in (("walk", "0123456789ab"), ("decode", "123456789abc"), ("scaling", "23456789abcd")):
        entries[name] |= {"commit": revision, "hardware": f"machine of {name}"}
    entries["startup"] |= {"commit": "3456789abcde", "found": None}
    after = quoted(README.read_text(), entries)
    assert "0123456789ab" in after and "machine of walk" in after and "123456789abc" in after
    assert "23456789abcd" not in after and "machine of scaling" not in after and "3456789abcde" not in after


def test_a_page_without_the_table_is_not_touched_silently():
    with pytest.raises(AssertionError, match="no table under Measured"):
        quoted("# GPT*\n", ENTRIES)
