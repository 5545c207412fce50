import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptstar.configuration import run_door
from gptstar.data.config import DataConfig
from gptstar.data.corpora import CorpusConfig
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
from gptstar.training.config import BatchWarmup, LengthWarmup, TrainConfig, TrainerConfig
from gptstar.training.loop import train
from gptstar.training.order import Order
from gptstar.training.schedules import ScheduleConfig
from gptstar.training.spread import check_spread
from gptstar.training.world import World
from support import write_corpus

LENGTH = 16
CONSTANT = ScheduleConfig(name="constant")
BPE = TokenizerConfig(vocab_size=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    for seed, (name, n_file) in enumerate((("a", 9), ("b", 12), ("c", 5))):
        write_corpus(folder / name, n_file, seed)
    return folder


def mixture(folder, epochs, **changes) -> DataConfig:
    corpora = {name: CorpusConfig(paths=[f"{folder}/{name}/*.txt"], epochs=e) for name, e in epochs.items()}
    return DataConfig(name="mix", corpora=corpora, cache_dir=str(folder / "cache"), validation_fraction=0.3, **changes)


def order(data, batch_size=8, length=LENGTH, **more) -> Order:
    trainer = {key: more.pop(key) for key in ("batch_warmup", "length_warmup", "seed") if key in more}
    options = TrainerConfig(max_steps=1, batch_size=batch_size, **trainer)
    return Order(prepare(data, BPE), data, options, length, **more)


def test_a_whole_pass_has_every_window_as_often_as_its_epochs_say(folder):
    """By content: the rows of a pass are counted and compared with the corpora's own windows."""
    data = mixture(folder, {"a": 1.0, "b": 0.5, "c": 2.0})
    found = order(data, batch_size=1)
    n_pass = found.history.at(0).n_pass
    seen = [tuple(found.read(step).inputs[0].tolist()) for step in range(n_pass)]
    for name, low, high in (("a", 1, 1), ("b", 0, 1), ("c", 2, 2)):
        packing = found.packings[name]
        own = [tuple(row.tolist()) for row in packing.read(np.arange(packing.n_window)).inputs]
        counts = [seen.count(row) for row in own]
        assert min(counts) == low and max(counts) == high
        assert sum(counts) == int({"a": 1.0, "b": 0.5, "c": 2.0}[name] * packing.n_window)
        assert found.taken(n_pass)[name] == sum(counts)
    assert sum(found.taken(n_pass).values()) == n_pass and found.passes(n_pass) == 1.0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_documents_are_numbered_only_for_a_mask(folder, packing, masked):
    batch = order(mixture(folder, {"a": 1.0, "b": 1.0}, packing=packing, document_mask=masked)).read(0)
    assert len(batch.tensors) == 2 + masked and (batch.documents is not None) == masked


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_ranks_share_what_one_reads(folder, packing):
    data = mixture(folder, {"a": 1.0, "b": 0.5}, packing=packing)
    whole = order(data)
    for step in (0, 3):
        parts = [order(data, rank=rank, n_rank=4).read(step) for rank in range(4)]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.read(step).inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.read(step).targets)


def test_shares_by_weight(folder):
    data = mixture(folder, {"a": 1.0, "b": 1.0})
    for corpus, weight in zip(data.parts.values(), (3.0, 1.0), strict=True):
        corpus.weight = weight
    found = order(data, batch_size=4)
    taken = found.taken(found.history.at(0).n_pass // 4)
    assert taken["a"] / sum(taken.values()) == pytest.approx(0.75, abs=0.02)
    assert max(found.epochs(found.history.at(0).n_pass // 4).values()) <= 1.0


def test_sequences_are_cut_and_the_batch_grows(folder):
    data = mixture(folder, {"a": 1.0})
    plain = order(data, batch_size=1)
    grown = order(
        data,
        batch_warmup=BatchWarmup(first=2, increment=2, steps=6),
        length_warmup=LengthWarmup(first=4, steps=4),
    )
    position = 0
    for step in range(8):
        batch = grown.read(step)
        n = {0: 2, 1: 2, 2: 4, 3: 4, 4: 6, 5: 6}.get(step, 8)
        assert batch.inputs.shape == ((n * 4, 4) if step < 2 else (n * 2, 8) if step < 4 else (n, 16))
        rows = torch.cat([plain.read(position + i).inputs for i in range(n)])
        assert torch.equal(batch.inputs.reshape(n, LENGTH), rows) and grown.tokens(step) == n * LENGTH
        position += n


def test_a_corpus_that_is_shorter_than_its_share_is_refused(folder):
    with pytest.raises(UserError, match=r"data=mix: .*c"):
        order(mixture(folder, {"a": 1.0, "c": 0.0001}))


def run(train_config, folder, epochs, name, **trainer):
    options = dataclasses.replace(train_config.trainer, **trainer)
    return dataclasses.replace(
        train_config, data=mixture(folder, epochs), trainer=options, run_dir=str(folder / name), tokenizer=BPE
    )


def lines(config, key):
    found = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in found if key in line}


def test_training_goes_on_when_a_corpus_is_added(train_config, folder):
    config = run(train_config, folder, {"a": 1.0, "b": 0.5}, "grows", max_steps=8)
    train(config)
    assert set(lines(config, "validation_loss/a")) == {4, 8} and set(lines(config, "epoch/b")) == set(range(1, 9))
    added = dataclasses.replace(
        config,
        data=mixture(folder, {"a": 1.0, "b": 0.5, "c": 2.0}),
        trainer=dataclasses.replace(config.trainer, max_steps=16),
        resume=config.run_dir,
    )
    train(added)
    epochs = lines(added, "epoch/c")
    assert min(epochs) == 9 and 0 < epochs[16] < 2
    before, after = lines(added, "epoch/a")[8], lines(added, "epoch/a")[9]
    assert 0 <= after - before < 0.05  # where it was, not from the beginning
    progress = json.loads((Path(config.run_dir) / "checkpoints/step-00000016/training/progress.json").read_text())
    segments = progress["data"]["history"]["mixtures"]
    assert [list(s["sources"]) for s in segments] == [["a", "b"], ["a", "b", "c"]] and segments[1]["begin"] == 32
    again = dataclasses.replace(added, trainer=dataclasses.replace(added.trainer, max_steps=18))
    train(again)  # the same mixture: no third segment
    progress = json.loads((Path(config.run_dir) / "checkpoints/step-00000018/training/progress.json").read_text())
    assert len(progress["data"]["history"]["mixtures"]) == 2


def test_a_mixture_resumes_exactly(train_config, folder):
    whole = run(train_config, folder, {"a": 1.0, "b": 0.5, "c": 2.0}, "whole", max_steps=8)
    first = run(train_config, folder, {"a": 1.0, "b": 0.5, "c": 2.0}, "first", max_steps=4)
    warmup = dict(batch_warmup=BatchWarmup(2, 2, 3), length_warmup=LengthWarmup(8, 5), microbatch=2)
    whole, first = (
        dataclasses.replace(c, trainer=dataclasses.replace(c.trainer, **warmup), schedule=CONSTANT)
        for c in (whole, first)
    )
    train(whole)
    train(first)
    options = dataclasses.replace(first.trainer, max_steps=8)
    train(dataclasses.replace(first, trainer=options, resume=first.run_dir))
    assert lines(first, "loss") == lines(whole, "loss")


def test_padding_counts_for_nothing_whatever_the_microbatch(train_config, folder):
    found = []
    for name, microbatch in (("rows", 1), ("batch", 4)):
        config = run(train_config, folder, {"a": 1.0}, f"fit-{name}", max_steps=3, microbatch=microbatch)
        data = dataclasses.replace(config.data, packing="best_fit", document_mask=True)
        config = dataclasses.replace(config, data=data)
        train(config)
        found.append((list(lines(config, "loss").values()), list(lines(config, "tokens").values())[-1]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][1] == found[1][1]


def test_another_corpus_joins_a_run_that_began_with_one(train_config, folder, monkeypatch, capsys):
    """Through the door, whose part it is to make a mixture of the first."""
    config = run(train_config, folder, {"a": 1.0}, "alone", max_steps=4)
    data = dataclasses.replace(config.data, corpora={}, corpus="text_files", name="a", paths=[f"{folder}/a/*.txt"])
    train(dataclasses.replace(config, data=data))
    new = f"+data.corpora.b={{paths:[{folder}/b/*.txt],epochs:0.5}}"
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={config.run_dir}", new, "trainer.max_steps=8"])
    found = []
    run_door("train", TrainConfig, found.append)
    assert list(found[0].data.parts) == ["a", "b"] and found[0].data.parts["a"].paths == [f"{folder}/a/*.txt"]
    train(found[0])
    assert min(lines(config, "epoch/b")) == 5 and lines(config, "epoch/a")[5] > lines(config, "epoch")[4]
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={config.run_dir}", "data.corpora.b.epochs=2"])
    run_door("train", TrainConfig, found.append)
    assert found[1].data.parts["b"].epochs == 2 and found[1].data.parts["b"].paths == [f"{folder}/b/*.txt"]


def test_warm_ups_that_cannot_be_are_refused_before_anything_is_prepared(train_config):
    for trainer, words in (
        ({"batch_warmup": BatchWarmup(first=32, increment=1, steps=9)}, "batch_warmup.first=32 must not be larger"),
        ({"length_warmup": LengthWarmup(first=5, steps=9)}, "length_warmup.first=5 must divide"),
    ):
        config = dataclasses.replace(train_config, trainer=dataclasses.replace(train_config.trainer, **trainer))
        with pytest.raises(UserError, match=words):
            config.check()


def test_every_size_of_a_growing_batch_is_divided_among_the_ranks(train_config):
    options = dataclasses.replace(train_config.trainer, batch_warmup=BatchWarmup(first=2, increment=1, steps=9))
    config = dataclasses.replace(train_config, trainer=options)
    with pytest.raises(UserError, match="steps of 3 sequences, which cannot be divided among 2 ranks"):
        check_spread(config, World(torch.device("cpu"), "ddp", size=2))


def test_a_cache_that_is_smaller_than_what_is_read_together_is_refused(folder):
    data = mixture(folder, {"a": 1.0})
    prepared = prepare(data, BPE)
    corpus = dataclasses.replace(prepared.corpora["a"], ahead=lambda shards: None, n_byte=1000)
    prepared.corpora["a"] = corpus
    with pytest.raises(UserError, match=r"a: 1 shards are read together .*shuffle_shards=0"):
        Order(prepared, data, TrainerConfig(max_steps=1), LENGTH)
