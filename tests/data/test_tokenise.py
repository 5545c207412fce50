import io
import threading

import pytest
from preparing import made_up, write_jsonl
from rich.console import Console

from gptstar.data import lines, tokenise
from gptstar.data.corpora import Source
from gptstar.data.reading import FilePiece
from gptstar.data.records import Fields
from gptstar.data.tokenise import Tally, stems_of
from gptstar.data.worker import Recipe
from gptstar.errors import UserError


@pytest.fixture
def recipe(tokenizer) -> Recipe:
    return Recipe(tokenizer.fast.to_str(), tokenizer.eot_token, Fields(), None, bad_records="skip")


@pytest.fixture
def sources(tmp_path, monkeypatch) -> list[Source]:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 500)
    (tmp_path / "parts").mkdir()
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", made_up(20, i)) for i in range(3)]
    return [Source(FilePiece(str(path)), f"print {i}", held_out=i == 0) for i, path in enumerate(paths)]


def tally(console=None) -> Tally:
    return Tally("test", 3, console or Console(quiet=True))


def run(sources, recipe, tmp_path, n_worker=0, part_bytes=1000, tell=None):
    return tokenise.tokenise(sources, recipe, tmp_path / "parts", n_worker, tell or tally(), part_bytes)


@pytest.mark.parametrize("n_worker", [0, 2])
def test_parts_of_each_piece_in_order(sources, recipe, tmp_path, n_worker):
    found = run(sources, recipe, tmp_path, n_worker)
    assert [len(parts) > 2 and parts[-1].last for parts in found] == [True] * 3
    for source, parts in zip(sources, found, strict=True):
        records = [r for part in parts for r in part.documents_table()["record"].tolist()]
        assert records == list(range(20)) and not any(part.last for part in parts[:-1])
        assert all(part.piece == source.piece.name for part in parts)
        assert {bool(h) for part in parts for h in part.documents_table()["held_out"]} == {source.held_out}


def test_what_is_there_is_not_made_again(sources, recipe, tmp_path, monkeypatch):
    found = run(sources, recipe, tmp_path)
    found[1][-1].remove()
    found[2][0].remove()
    begun = []
    blocks = FilePiece.blocks

    def noted(self, start=0):
        begun.append((self.name[-7:], start))
        return blocks(self, start)

    monkeypatch.setattr(FilePiece, "blocks", noted)
    told = tally()
    assert run(sources, recipe, tmp_path, tell=told) == found
    assert sorted(begun) == [("1.jsonl", found[1][-2].next_block), ("2.jsonl", 0)]
    assert (told.pieces, told.documents) == (3, 60)
    parts = [part for some in found for part in some]
    assert (told.tokens, told.n_byte) == (sum(p.tokens for p in parts), sum(p.n_byte for p in parts))
    begun.clear()
    assert run(sources, recipe, tmp_path) == found and not begun


def test_parts_are_bounded_also_where_nothing_can_be_read(tmp_path, recipe, sources, monkeypatch):
    monkeypatch.setattr(tokenise, "PART_BLOCKS", 3)
    (tmp_path / "0.jsonl").write_text('{"body": "no text at all in this record"}\n' * 100)
    source = Source(FilePiece(str(tmp_path / "0.jsonl")), "bad")
    parts = run([source], recipe, tmp_path, part_bytes=10**9)[0]
    assert len(parts) > 2 and sum(part.n_read for part in parts) == 100
    assert max(part.n_read for part in parts) < 45


def test_same_content_has_parts_of_its_own():
    contents = (("a", False), ("a", False), ("a", True), ("b", False))
    some = [Source(FilePiece(__file__), content, held_out) for content, held_out in contents]
    assert len(set(stems_of(some))) == 4
    assert stems_of(some)[0] == stems_of(some[3:] + some[:1])[1]  # whatever comes before


def test_after_an_error_every_thread_ends(sources, recipe, tmp_path):
    before = threading.active_count()
    (tmp_path / "1.jsonl").unlink()
    with pytest.raises(UserError, match=r"1\.jsonl"):
        run(sources, recipe, tmp_path, n_worker=2)
    assert threading.active_count() == before


@pytest.mark.parametrize("terminal", [True, False])
def test_the_tally_tells_rates_of_this_time_and_counts_of_all(sources, recipe, tmp_path, terminal):
    out = io.StringIO()
    run(sources[:2], recipe, tmp_path)
    told = tally(Console(file=out, force_terminal=terminal, width=200))
    with told.shown():
        run(sources, recipe, tmp_path, tell=told)
        own = told._own_tokens
    assert 0 < own < told.tokens and str(told).startswith("3/3 pieces, 60 documents, ")
    assert bool(out.getvalue()) == terminal
