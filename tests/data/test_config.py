from dataclasses import asdict

import pytest

from gptstar.data.config import ContaminationConfig, DataConfig
from gptstar.data.corpora import CorpusConfig
from gptstar.data.duplicates import NearConfig
from gptstar.data.filters import FilterConfig

BOOKS = CorpusConfig(paths=["books/*.txt"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": "stdlob"}, "data.corpus='stdlob' is unknown: choose one of stdlib, text_files, hub, prepared"),
        ({"clean": "yes"}, "data.clean='yes' is unknown"),
        ({"bad_records": "drop"}, "data.bad_records='drop' is unknown: choose one of stop, skip"),
        ({"packing": "tight"}, "data.packing='tight' is unknown"),
        ({"corpus": "text_files"}, "data.paths is empty"),
        ({"corpus": "hub"}, "data.dataset is not set"),
        ({"corpus": "prepared"}, "data.url is not set"),
        ({"newer_than": "2018-10-31"}, "data.newer_than=2018-10-31 needs data.date_field"),
        ({"newer_than": "lately", "date_field": "d"}, "data.newer_than=lately must be a date"),
        ({"validation_fraction": 1.0}, "data.validation_fraction=1.0"),
        ({"workers": 0}, "data.workers=0 must be at least 1"),
        ({"shard_tokens": 0}, "data.shard_tokens=0 must be at least 1"),
        ({"shuffle_shards": -1}, "data.shuffle_shards=-1"),
        ({"cache_gib": 0}, "data.cache_gib=0 must be above 0"),
        ({"epochs": 0}, "data.epochs=0 must be above 0"),
        ({"corpora": {"books": CorpusConfig()}}, "data.corpora.books.paths is empty"),
        ({"corpora": {"books": CorpusConfig(paths=["a"], epochs=-1)}}, "data.corpora.books.epochs=-1 must be above 0"),
        (
            {"corpora": {"books": BOOKS, "web": CorpusConfig(paths=["a"], weight=0.5)}},
            "data.corpora.books.weight is not set, but web's is",
        ),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        DataConfig(**changes)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"shortest": 0}, {"shortest": 14}, {"min_matches": 0}], ids=str)
def test_impossible_ways_to_look_for_evaluation_sets_are_refused(changes):
    with pytest.raises(ValueError, match=f"data.contamination.{next(iter(changes))}={next(iter(changes.values()))}"):
        ContaminationConfig(**changes)


def test_what_was_written_is_read_again():
    config = DataConfig(
        corpora={"books": BOOKS},
        filters=FilterConfig(min_chars=3),
        near_duplicates=NearConfig(threshold=0.7),
        contamination=ContaminationConfig(tasks=["piqa"]),
    )
    assert DataConfig.from_dict(asdict(config)) == config


def test_one_corpus_is_a_mixture_of_one():
    config = DataConfig(name="one")
    assert config.parts == {"one": config} and DataConfig(corpora={"books": BOOKS}).parts == {"books": BOOKS}
