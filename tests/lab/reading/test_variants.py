import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.lab.reading.settings import difference
from gptstar.lab.reading.variants import variants
from lab.run_folders import make_config, make_run

MUON = {"optimizer.name": "muon", "optimizer.lr": 0.02}


def run(source, seed=0, **changes):
    own = {key: changes.pop(key) for key in ("variant", "problem", "name") if key in changes}
    return make_run(source, seed=seed, config=make_config(**changes, **{"trainer.seed": seed}), **own)


def grouped(*runs):
    return {name: [each.source for each in group] for name, group in variants(runs).items()}


def test_runs_that_differ_in_their_seed_are_one_variant():
    assert grouped(run("a"), run("b", 1), run("c", 2)) == {"tiny": ["a", "b", "c"]}


def test_what_does_not_make_another_variant():
    changes = {
        "run_dir": "elsewhere",
        "resume": "runs/a",
        "logger.name": "wandb",
        "data.cache_dir": "/fast",
        "trainer.device": "cuda:1",
        "trainer.microbatch": 2,
        "trainer.eval_every": 7,
        "trainer.keep_last": 9,
    }
    assert grouped(run("a"), run("b", 1, **changes)) == {"tiny": ["a", "b"]}


def test_names_are_the_fewest_settings_that_tell_variants_apart():
    runs = [
        run("a"),
        run("b", **MUON),
        run("c", **MUON, **{"model.qk_norm": True}),
        run("d", **{"model.name": "wide"}),
        run("e", 1, **MUON),
    ]
    assert grouped(*runs) == {
        "tiny": ["a"],
        "tiny optimizer.name=muon model.qk_norm=false": ["b", "e"],
        "tiny model.qk_norm=true": ["c"],
        "wide": ["d"],
    }


def test_a_short_value_names_a_variant_rather_than_a_long_one():
    far = {"data.paths": ["a/very/long/path/to/a.txt"], "tokenizer.vocab_size": 500}
    assert list(grouped(run("a"), run("b", **far))) == ['tiny data.paths=["a.txt"]', "tiny tokenizer.vocab_size=500"]
    assert list(grouped(run("a"), run("b", **far), run("c", **far, **MUON))) == [
        'tiny data.paths=["a.txt"]',
        "tiny tokenizer.vocab_size=500 optimizer.name=adamw",
        "tiny optimizer.name=muon",
    ]


def test_the_usual_value_goes_unsaid():
    assert grouped(run("a", **{"trainer.batch_size": 8}), run("b")) == {
        "tiny trainer.batch_size=8": ["a"],
        "tiny trainer.batch_size=4": ["b"],
    }  # neither is the default
    more = run("c", **{"trainer.batch_size": 8, "model.windows": [4, 0]})
    assert list(grouped(run("a", **{"trainer.batch_size": 8}), run("b"), more)) == [
        "tiny",
        "tiny trainer.batch_size=4",
        "tiny model.windows=[4,0]",
    ]


def test_a_setting_that_an_older_run_lacks_is_at_its_default():
    older = make_config(**{"trainer.seed": 1})
    del older["model"]["qk_norm"], older["trainer"]["batch_warmup"]
    assert grouped(run("a"), make_run("b", seed=1, config=older)) == {"tiny": ["a", "b"]}


def test_a_name_that_is_given_counts():
    runs = [run("a", variant="x", **MUON), run("b", 1, variant="x"), run("c", 2)]
    assert grouped(*runs) == {"x": ["a", "b"], "tiny": ["c"]}
    assert grouped(run("a", variant="tiny", **MUON), run("c", 2)) == {
        "tiny": ["a"],
        "tiny (by its configuration)": ["c"],
    }


def test_runs_that_say_nothing_are_variants_of_their_own():
    assert grouped(make_run("a", config={}), make_run("b", config={}, seed=1)) == {"a": ["a"], "b": ["b"]}


def test_a_foreign_configuration():
    runs = [make_run(str(i), config={"lr": lr, "seed": i}, seed=i) for i, lr in enumerate([0.1, 0.1, 0.2])]
    assert grouped(*runs) == {"run lr=0.1": ["0", "1"], "run lr=0.2": ["2"]}


def test_of_two_runs_with_one_seed_the_later_is_kept_and_the_other_reported():
    (group,) = variants([run("a"), run("b"), run("c", 1), run("d", 1, problem="broken")]).values()
    assert [each.problem for each in group] == ["seed 0 of tiny is there again: b is kept", None, None, "broken"]
    (group,) = variants([make_run("a", seed=None), make_run("b", seed=None)]).values()
    assert [each.problem for each in group] == [None, None]


CHOICES = [
    dict(zip(("optimizer.name", "model.qk_norm", "trainer.batch_size"), values, strict=True))
    for values in itertools.product(("adamw", "muon"), (False, True), (4, 8))
]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(CHOICES), st.integers(0, 2)), min_size=1, max_size=8), st.randoms())
def test_the_order_of_runs_changes_no_group_and_every_run_is_in_one(chosen, shuffler: random.Random):
    runs = [run(str(i), seed, **changes) for i, (changes, seed) in enumerate(chosen)]
    before = grouped(*runs)
    shuffled = list(runs)
    shuffler.shuffle(shuffled)
    after = grouped(*shuffled)
    assert {name: set(group) for name, group in before.items()} == {name: set(group) for name, group in after.items()}
    assert sorted(source for group in before.values() for source in group) == sorted(each.source for each in runs)
    assert len(before) == len({tuple(changes.items()) for changes, _ in chosen})


def test_the_difference_of_two_configurations():
    own = make_config(**MUON, **{"trainer.seed": 3, "run_dir": "x", "logger.group": "y", "data.cache_dir": "/z"})
    assert difference(own, make_config()) == {"optimizer.name": ("adamw", "muon"), "optimizer.lr": (0.0006, 0.02)}
    assert difference({"a": {"b": 1}}, {"a": {"c": [1]}, "seed": 0}) == {"a.c": ([1], None), "a.b": (None, 1)}
    assert difference({}, {}) == {}
