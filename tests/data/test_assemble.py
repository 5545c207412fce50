import itertools
import json

import numpy as np
import pytest
from preparing import contents, made_up

from gptstar.data import assemble as module
from gptstar.data.assemble import KEYS, SIGNATURES, STATE, Repeats, staying, write_marks, write_removed, write_shards
from gptstar.data.duplicates import NearConfig, exact_key, signature
from gptstar.data.parts import Part, part_path
from gptstar.data.records import Block, Fields
from gptstar.data.shards import TokenStream
from gptstar.data.worker import Chunk, Preparer, Recipe

OFF, NEAR = NearConfig(threshold=0), NearConfig(threshold=0.5, n_gram=2)


@pytest.fixture
def make_parts(tokenizer, tmp_path):
    """Parts of some texts, each text held out or not."""
    recipe = Recipe(tokenizer.fast.to_str(), tokenizer.eot_token, Fields(), None, "none", "stop", exact_duplicates=True)
    preparer = Preparer(Recipe(**(vars(recipe) | {"near_duplicates": NEAR})))

    def make(texts: list[str], n_part: int = 4, held_out=frozenset(), name: str = "stem") -> list[Part]:
        parts = []
        (tmp_path / "parts").mkdir(exist_ok=True)
        for number, rows in enumerate(np.array_split(np.arange(len(texts)), n_part)):
            raw = b"".join(json.dumps({"text": texts[i]}).encode() + b"\n" for i in rows)
            first = int(rows[0]) if len(rows) else 0
            chunk = preparer.process(Block("piece", "jsonl", first, raw)) if len(rows) else Chunk.joined([])
            chunk.documents["held_out"] = [record in held_out for record in chunk.documents["record"].tolist()]
            path = part_path(tmp_path / "parts" / name, number)
            parts.append(Part.write(path, "piece", chunk, number + 1, number == n_part - 1))
        return parts

    return make


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def gone(parts, repeats) -> dict[int, tuple]:
    found = {}
    for part in parts:
        records = part.documents_table()["record"]
        for row, why in repeats.among(part).items():
            found[int(records[row])] = (why["reason"], why["of"], why.get("of_record"))
    return found


@pytest.mark.parametrize("n_part", [1, 4, 30])
def test_repeats_are_found_over_the_borders_of_parts(make_parts, work, n_part):
    texts = made_up(20)
    texts[12] = texts[3]
    texts[15] = texts[4] + " more"
    texts[17] = texts[15]
    parts = make_parts(texts, n_part)
    exact, near = ("duplicate", "piece"), ("near duplicate", "piece")
    assert gone(parts, Repeats(parts, [], False, OFF, work / "s")) == {}
    assert gone(parts, Repeats(parts, [], True, OFF, work / "s")) == {12: (*exact, 3), 17: (*exact, 15)}
    both = Repeats(parts, [], True, NEAR, work / "s")
    assert gone(parts, both) == {12: (*exact, 3), 15: (*near, 4), 17: (*exact, 15)}
    assert sum(int(staying(part, both).sum()) for part in parts) == 17
    assert not (work / "s").exists()


def test_held_out_documents_count_as_first(make_parts, work):
    texts = made_up(20)
    texts[15], texts[16] = texts[4] + " more", texts[5] + " more"
    parts = make_parts(texts, held_out={15})
    found = gone(parts, Repeats(parts, [], True, NEAR, work / "s"))
    assert found == {4: ("near duplicate", "piece", 15), 16: ("near duplicate", "piece", 5)}


def test_what_stays_is_remembered_for_later_corpora(make_parts, work, tmp_path):
    texts = made_up(20)
    texts[9], texts[12] = texts[3], texts[4] + " more"
    parts = make_parts(texts)
    repeats = Repeats(parts, [], True, NEAR, work / "s")
    write_marks(parts, repeats, work, True, True)
    left = [text for i, text in enumerate(texts) if i not in (9, 12)]
    assert np.load(work / KEYS).tobytes() == b"".join(map(exact_key, left))
    assert np.array_equal(np.load(work / SIGNATURES), signature(left, NEAR))
    empty = tmp_path / "empty"
    empty.mkdir()
    none = make_parts([], 2, name="none")
    write_marks(none, Repeats(none, [], True, NEAR, work / "s"), empty, True, True)
    new = "something new of its own"
    later = make_parts([texts[3], new, texts[6] + " more", new], 2, name="b")
    found = gone(later, Repeats(later, [empty, work, empty], True, NEAR, work / "s"))
    assert found == {
        0: ("duplicate", "an earlier corpus", None),
        2: ("near duplicate", "an earlier corpus", None),
        3: ("duplicate", "piece", 1),
    }


def test_what_a_kill_left_of_the_search_is_removed(make_parts, work):
    (work / "scratch" / "tmpabc").mkdir(parents=True)
    (work / "scratch" / "tmpabc" / "0").write_bytes(b"half")
    parts = make_parts(made_up(5))
    Repeats(parts, [], True, NEAR, work / "scratch")
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("shard_tokens", [40, 200, 10**6])
def test_shards_hold_what_stays_in_order(make_parts, work, tokenizer, shard_tokens):
    texts = made_up(20)
    texts[9] = texts[3]
    held_out = {2, 5, 9, 14, 3}
    parts = make_parts(texts, 7, held_out)
    splits = write_shards(parts, Repeats(parts, [], True, OFF, work / "s"), work, tokenizer.vocab_size, shard_tokens)
    for name, wanted in (("train", set(range(20)) - held_out), ("validation", held_out - {9})):
        stream = TokenStream(work, splits[name], tokenizer.vocab_size)
        expected = [t for i in sorted(wanted) for t in (*tokenizer.encode(texts[i]), tokenizer.eot_id)]
        assert stream.read(0, len(stream)).tolist() == expected
        assert splits[name].documents == len(wanted)
        assert splits[name].bytes == sum(len(texts[i].encode()) for i in wanted)


def test_assembly_goes_on_after_the_last_whole_shard(make_parts, work, tmp_path, tokenizer, monkeypatch):
    parts = make_parts(made_up(40), 10, {1, 7, 20, 33})
    repeats = Repeats(parts, [], False, OFF, work / "s")
    expected = tmp_path / "expected"
    expected.mkdir()
    splits = write_shards(parts, repeats, expected, tokenizer.vocab_size, 150)
    n_shard = sum(len(split.shards) for split in splits.values())
    save = module.Assembly._save
    closed, again = [], []
    for _ in range(n_shard):

        def stop(self):
            save(self)
            closed.append(1)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module.Assembly, "_save", stop)
            write_shards(parts, repeats, work, tokenizer.vocab_size, 150)
        again.append({p.name: p.stat().st_ino for p in work.glob("*.bin")})
        assert len(again[-1]) == len(closed)
    assert write_shards(parts, repeats, work, tokenizer.vocab_size, 150) == splits
    assert contents(work) == contents(expected) and (work / STATE).is_file()
    for earlier, later in itertools.pairwise(again):
        assert earlier.items() <= later.items()


def test_removed_documents_are_listed_in_order_under_the_names_of_their_files(make_parts, work):
    texts = ["", *made_up(8), ""]
    texts[6] = texts[2]
    parts = make_parts(texts, 3)
    repeats = Repeats(parts, [], True, OFF, work / "s", lambda part, record: f"file {record}")
    counts, tasks = write_removed(parts, repeats, work)
    lines = [json.loads(line) for line in (work / "removed.jsonl").read_text().splitlines()]
    assert [(e["record"], e["reason"]) for e in lines] == [(0, "empty"), (6, "duplicate"), (9, "empty")]
    assert lines[1] == {"piece": "file 6", "record": 6, "reason": "duplicate", "of": "file 2", "of_record": 2}
    assert (counts, tasks) == ({"empty": 2, "duplicate": 1}, {})
    assert (work / "contaminated.jsonl").read_text() == ""
