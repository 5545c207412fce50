"""The recipe's road on real text: six compressed parts of Wikipedia, the standard library and a play."""

import numpy as np
import pytest

from gptstar.data.config import DataConfig
from gptstar.data.corpora import CorpusConfig
from gptstar.data.mixture import Mixture, Source
from gptstar.data.packing import Concatenated
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig

EPOCHS = {"enwiki": 1.0, "stdlib": 0.5, "tinyshakespeare": 2.0}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_pass_over_three_corpora_counts_exactly(shared, tmp_path):
    corpora = {
        "enwiki": CorpusConfig(paths=[f"{shared}/corpora/enwiki/train-*.jsonl.xz"]),
        "stdlib": CorpusConfig("stdlib"),
        "tinyshakespeare": CorpusConfig(paths=[f"{shared}/corpora/tinyshakespeare.txt"]),
    }
    for name, epochs in EPOCHS.items():
        corpora[name].epochs = epochs
    data = DataConfig(name="three", corpora=corpora, cache_dir=str(tmp_path), validation_fraction=0.005)
    prepared = prepare(data, TokenizerConfig(source=str(shared / "tokenizers" / "gpt2")))
    documents = {name: corpus.train.split.documents for name, corpus in prepared.corpora.items()}
    held_out = {name: corpus.validation.split.documents for name, corpus in prepared.corpora.items()}
    assert documents["enwiki"] + held_out["enwiki"] == 239_562 and documents["tinyshakespeare"] == 1
    play = prepared.corpora["tinyshakespeare"]  # a single document, whose end is held out: both are closed
    assert held_out["tinyshakespeare"] == 1 and 0.005 <= len(play.validation) / len(play.train) < 0.0075
    assert len(play.train) + len(play.validation) == 338_025 + 2

    packings = {
        n: Concatenated(c.train, 512, prepared.tokenizer.eot_id, c.offsets) for n, c in prepared.corpora.items()
    }
    mixture = Mixture(
        [Source(n, p.windows_per_shard, EPOCHS[n], prepared.corpora[n].key) for n, p in packings.items()], 7
    )
    seen = {name: np.zeros(packing.n_window, np.int64) for name, packing in packings.items()}
    for first in range(0, mixture.n_pass, 4096):
        which, windows = mixture.windows(first, min(4096, mixture.n_pass - first))
        for i, name in enumerate(seen):
            np.add.at(seen[name], windows[which == i], 1)
    assert (seen["enwiki"] == 1).all() and (seen["tinyshakespeare"] == 2).all()
    assert seen["stdlib"].max() == 1 and seen["stdlib"].sum() == packings["stdlib"].n_window // 2
    assert {name: int(counts.sum()) for name, counts in seen.items()} == mixture.taken(mixture.n_pass)
