import itertools
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gptstar.data.packing as packing_module
from gptstar.data.packing import IGNORED, Batch, BestFit, Concatenated, best_fit, shorten
from gptstar.data.shards import TokenStream
from gptstar.errors import UserError
from support import write_split

VOCAB, EOT = 300, 0
DOCUMENTS = st.lists(st.integers(0, 40), min_size=1, max_size=25)
KINDS = pytest.mark.parametrize("kind", [Concatenated, BestFit])


def beside(folder: Path):
    return lambda shard: folder / shard.offsets_file


def write(folder: Path, lengths: list[int], shard_tokens: int) -> tuple[TokenStream, list[list[int]]]:
    """Documents of so many made-up tokens, and each with its end-of-text."""
    rng = np.random.default_rng(len(lengths))
    documents = [rng.integers(1, VOCAB, n).tolist() for n in lengths]
    return TokenStream(folder, write_split(folder, documents, shard_tokens), VOCAB), [
        [*tokens, EOT] for tokens in documents
    ]


@contextmanager
def written(lengths: list[int], shard_tokens: int):
    with tempfile.TemporaryDirectory() as name:
        yield Path(name), *write(Path(name), lengths, shard_tokens)


def all_windows(packing) -> Batch:
    return packing.read(np.arange(packing.n_window))


@KINDS
@settings(deadline=None, max_examples=40)
@given(lengths=DOCUMENTS, shard_tokens=st.integers(1, 200), length=st.integers(1, 20), seed=st.integers(0, 9))
def test_segments_are_what_the_targets_are_and_inputs_what_comes_before(kind, lengths, shard_tokens, length, seed):
    with written(lengths, shard_tokens) as (folder, stream, documents):
        packing = kind(stream, length, EOT, beside(folder))
        assert packing.n_window == packing.windows_per_shard.sum()
        assert len(packing.windows_per_shard) == len(stream.split.shards)
        if not packing.n_window:
            return
        windows = np.random.default_rng(seed).permutation(packing.n_window)
        batch = packing.read(windows)
        assert batch.inputs.shape == batch.targets.shape == batch.documents.shape == (len(windows), length)
        for window, inputs, targets in zip(
            windows.tolist(), batch.inputs.tolist(), batch.targets.tolist(), strict=True
        ):
            begin = 0
            for document, first, n in packing.segments(window):
                tokens = documents[document]
                assert targets[begin : begin + n] == tokens[first : first + n] and n
                before = tokens[first - 1 : first - 1 + n] if first else [EOT, *tokens[: n - 1]]
                assert inputs[begin : begin + n] == before
                begin += n
            assert targets[begin:] == [IGNORED] * (length - begin)


@settings(deadline=None, max_examples=40)
@given(DOCUMENTS, st.integers(1, 200), st.integers(1, 20))
def test_best_fit_predicts_every_token_once_and_cuts_only_long_documents(lengths, shard_tokens, length):
    with written(lengths, shard_tokens) as (folder, stream, documents):
        packing = BestFit(stream, length, EOT, beside(folder))
        segments = [s for window in range(packing.n_window) for s in packing.segments(window)]
        predicted = Counter((document, first + i) for document, first, n in segments for i in range(n))
        assert predicted == Counter((d, i) for d, tokens in enumerate(documents) for i in range(len(tokens)))
        pieces = Counter(document for document, _, _ in segments)
        assert all(pieces[d] == -(-len(tokens) // length) for d, tokens in enumerate(documents))
        batch = all_windows(packing)
        for numbers, window in zip(batch.documents.tolist(), range(packing.n_window), strict=True):
            sizes = [n for _, _, n in packing.segments(window)]
            expected = [k for k, n in enumerate(sizes) for _ in range(n)]
            assert numbers == expected + [len(sizes)] * (length - sum(sizes))
        assert (batch.inputs[batch.targets == IGNORED] == EOT).all()


@settings(deadline=None, max_examples=40)
@given(DOCUMENTS, st.integers(1, 200), st.integers(1, 20))
def test_concatenated_windows_are_those_of_each_shard(lengths, shard_tokens, length):
    with written(lengths, shard_tokens) as (folder, stream, _):
        packing = Concatenated(stream, length, EOT, beside(folder))
        flat, begin, rows = stream.read(0, len(stream)), 0, []
        for shard, n_window in zip(stream.split.shards, packing.windows_per_shard, strict=True):
            n = (shard.tokens - 1) // length
            assert n == n_window
            rows += [flat[begin + w * length : begin + (w + 1) * length + 1] for w in range(n)]
            begin += shard.tokens
        if rows:
            batch, rows = all_windows(packing), torch.from_numpy(np.stack(rows))
            assert torch.equal(batch.inputs, rows[:, :-1]) and torch.equal(batch.targets, rows[:, 1:])


@KINDS
def test_a_window_reads_nothing_but_its_own_shard(tmp_path, monkeypatch, kind):
    """Shards may be far away, and only some of them here."""
    stream, _ = write(tmp_path, [3, 30, 7, 0, 12, 5, 44, 2] * 4, 60)
    packing = kind(stream, 8, EOT, beside(tmp_path))
    ends = np.cumsum([s.tokens for s in stream.split.shards])
    shards = np.repeat(np.arange(len(ends)), packing.windows_per_shard)
    read, touched = stream.read, set()

    def watched(start, n):
        touched.update(np.searchsorted(ends, [start, start + n - 1], side="right").tolist())
        return read(start, n)

    monkeypatch.setattr(stream, "read", watched)
    for window, shard in enumerate(shards.tolist()):
        touched.clear()
        packing.read(np.array([window]))
        assert touched == {shard}


def naive_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """How full the bins are, one item at a time."""
    room: list[int] = []
    for size in sorted(sizes, reverse=True):
        fits = [i for i, left in enumerate(room) if left >= size]
        if fits:
            room[min(fits, key=lambda i: room[i])] -= size
        else:
            room.append(capacity - size)
    return [capacity - left for left in room]


@settings(max_examples=200)
@given(st.integers(1, 40), st.data())
def test_packing_by_counts_is_best_fit_decreasing(capacity, data):
    sizes = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    bins = best_fit(np.array(sizes, np.int64), capacity)
    filled = np.bincount(bins, sizes).astype(int) if sizes else np.empty(0, int)
    assert sorted(filled.tolist()) == sorted(naive_best_fit(sizes, capacity))


def test_many_documents_waste_little():
    rng = np.random.default_rng(0)
    sizes = np.minimum(512, rng.lognormal(5.5, 1.2, 100_000).astype(int) + 1)
    bins = best_fit(sizes, 512)
    filled = np.bincount(bins, sizes)
    assert filled.max() <= 512 and 1 - filled.mean() / 512 < 1e-3


@KINDS
@settings(deadline=None, max_examples=40)
@given(lengths=DOCUMENTS, shard_tokens=st.integers(1, 200), length=st.integers(1, 20))
def test_waste_is_what_the_windows_show(kind, lengths, shard_tokens, length):
    with written(lengths, shard_tokens) as (folder, stream, documents):
        packing = kind(stream, length, EOT, beside(folder))
        waste = packing.waste()
        segments = [s for window in range(packing.n_window) for s in packing.segments(window)]
        seen = sum(n for _, _, n in segments)
        assert (waste.tokens, waste.unseen) == (len(stream), len(stream) - seen)
        assert waste.pieces == len(segments) / len(documents)
        whole = sum(n == len(documents[d]) for d, _, n in segments)
        assert waste.cut == (len(documents) - whole) / len(documents)
        if not packing.n_window:
            return
        batch = all_windows(packing)
        real = batch.targets != IGNORED
        assert waste.padding == pytest.approx((~real).double().mean().item())
        pairs = torch.ones(length, length).tril().bool() & real[:, :, None]
        apart = pairs & (batch.documents[:, :, None] != batch.documents[:, None, :])
        assert waste.crossing == pytest.approx((apart.sum() / pairs.sum()).item(), abs=1e-6)


def test_plans_are_kept_beside_the_corpus_and_read_again(tmp_path, monkeypatch):
    stream, _ = write(tmp_path, [3, 30, 7, 0, 12, 5, 44, 2] * 4, 60)
    cache = tmp_path / "plans"
    first = all_windows(BestFit(stream, 16, EOT, beside(tmp_path), cache))
    files = sorted(cache.iterdir())
    assert len(files) == len(stream.split.shards) > 3
    assert files[0].name == f"train-00000.bestfit-16-{stream.split.shards[0].offsets_sha256[:16]}.npy"
    plain = all_windows(BestFit(stream, 16, EOT, beside(tmp_path)))
    monkeypatch.setattr(packing_module, "best_fit", None)  # nothing is planned again
    again = all_windows(BestFit(stream, 16, EOT, beside(tmp_path), cache))
    for other in (plain, again):
        assert torch.equal(other.inputs, first.inputs) and torch.equal(other.targets, first.targets)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_plan_that_is_damaged_or_of_other_offsets_is_made_again(tmp_path, damage):
    stream, _ = write(tmp_path, [3, 30, 7, 0, 12, 5, 44, 2], 1000)
    cache = tmp_path / "plans"
    first = all_windows(BestFit(stream, 16, EOT, beside(tmp_path), cache))
    (file,) = cache.iterdir()
    if damage is None:
        other = np.load(file)
        other[2, 0] += 1
        np.save(file, other)
    else:
        file.write_bytes(damage)
    assert torch.equal(all_windows(BestFit(stream, 16, EOT, beside(tmp_path), cache)).inputs, first.inputs)
    assert [f.name for f in cache.iterdir()] == [file.name] and np.load(file)[2].sum() == len(stream)
    stream.split.shards[0].offsets_sha256 = "0" * 64
    assert BestFit(stream, 16, EOT, beside(tmp_path), cache).n_window and len(list(cache.iterdir())) == 2


def test_a_plan_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    stream, _ = write(tmp_path, [3, 30], 1000)

    def full(file, plan):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing_module.np, "save", full)
    with pytest.raises(UserError, match=r"No space left.*best_fit keeps its plans there"):
        _ = BestFit(stream, 16, EOT, beside(tmp_path), tmp_path / "plans").n_window
    assert not list((tmp_path / "plans").iterdir())


def test_only_the_latest_plans_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(packing_module, "PLANS_IN_MEMORY", 2)
    stream, documents = write(tmp_path, [9] * 12, 1)
    packing = BestFit(stream, 16, EOT, beside(tmp_path))
    assert packing.n_window == len(documents) and len(packing._plans) == 2
    assert packing.segments(0) == [(0, 0, 10)] and packing.segments(11) == [(11, 0, 10)] and len(packing._plans) == 2


@KINDS
def test_windows_outside_are_an_error(tmp_path, kind):
    stream, _ = write(tmp_path, [50], 1000)
    packing = kind(stream, 10, EOT, beside(tmp_path))
    for window in (-1, packing.n_window):
        with pytest.raises(IndexError, match=f"windows {window}"):
            packing.read(np.array([window]))


@KINDS
def test_shorter_rows_hold_the_same_tokens_in_the_same_order(tmp_path, kind):
    stream, _ = write(tmp_path, [3, 30, 7, 0, 12, 5, 44, 2], 70)
    batch = all_windows(kind(stream, 12, EOT, beside(tmp_path)))
    short = shorten(batch, 4)
    for ours, theirs in itertools.zip_longest(
        (short.inputs, short.targets, short.documents), (batch.inputs, batch.targets, batch.documents)
    ):
        assert ours.shape == (3 * len(batch.inputs), 4) and torch.equal(ours.flatten(), theirs.flatten())
    assert shorten(Batch(batch.inputs, batch.targets), 6).documents is None
    with pytest.raises(ValueError, match="rows of 12 tokens cannot be split into rows of 5"):
        shorten(batch, 5)
