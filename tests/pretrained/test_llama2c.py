"""Real weights: stories260K writes its known story."""

import shutil

import pytest

import gptstar
from gptstar.errors import UserError

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


@pytest.fixture
def stories(shared, tmp_path):
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copy(shared / "weights" / "stories260K" / name, tmp_path / name)
        (tmp_path / name).chmod(0o644)
    return tmp_path / "stories260K.bin"


def test_greedy_from_the_beginning_it_tells_its_story(stories):
    model, tokenizer = gptstar.load(stories)
    assert gptstar.generate(model, tokenizer, "", max_new_tokens=100, temperature=0.0).startswith(STORY)


def test_its_tokenizer_reads_and_writes_any_text(stories):
    _, tokenizer = gptstar.load(stories)
    for text in (STORY, "Zoë saw 3 snowmen: ☃☃☃!", "a\nb", "<s>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(STORY)) < 0.7 * len(STORY)


def test_damage_is_named(stories):
    data = stories.read_bytes()
    for content, words in (
        (data[:-4], "is it truncated"),
        (data[:20], "too short"),
        (b"\xff" * 100, "no llama2.c header"),
        (data[:1000] + b"\xff\xff\xff\x7f" + data[1004:], "not finite"),
    ):
        stories.write_bytes(content)
        with pytest.raises(UserError, match=words):
            gptstar.load(stories)
    stories.write_bytes(data)
    stories.with_name("tok512.bin").unlink()
    with pytest.raises(UserError, match=r"put tok512.bin or tokenizer.bin beside it"):
        gptstar.load(stories)
