import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from gptstar.errors import UserError

TRAINED = train_tokenizer(["the cat sat on the mat", "the rat"] * 50, TokenizerConfig(vocab_size=280))


@given(st.text())
def test_any_text_survives_the_round_trip(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(st.lists(st.text(), max_size=5))
def test_a_batch_is_its_texts(texts):
    assert TRAINED.encode_batch(texts) == [TRAINED.encode(text) for text in texts]


def test_training_learns_words_and_keeps_end_of_text_apart():
    assert len(TRAINED.encode(" the")) == 1
    assert TRAINED.vocab_size <= 280
    assert TRAINED.eot_id not in TRAINED.encode("<|endoftext|>")  # text that spells it is text


def test_training_is_deterministic_and_stops_at_its_byte_budget():
    texts, config = ["a b c d " * 30] * 5, TokenizerConfig(vocab_size=260, train_bytes=100)
    seen = []

    def documents():
        for text in texts:
            seen.append(text)
            yield text

    assert train_tokenizer(documents(), config).fingerprint() == train_tokenizer(texts, config).fingerprint()
    assert len(seen) <= 2


def test_saved_and_loaded_is_the_same(tmp_path):
    TRAINED.save(tmp_path / "tokenizer.json")
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(str(source), "<|endoftext|>")
        assert again.encode("the mat <|endoftext|>") == TRAINED.encode("the mat <|endoftext|>")
        assert again.fingerprint() == TRAINED.fingerprint()


def test_truncation_and_padding_in_a_published_file_are_ignored(tmp_path):
    TRAINED.fast.enable_truncation(5)
    TRAINED.fast.enable_padding(length=8)
    TRAINED.save(tmp_path / "tokenizer.json")
    TRAINED.fast.no_truncation()
    TRAINED.fast.no_padding()
    again = load_tokenizer(str(tmp_path), "<|endoftext|>")
    for text in ("the cat sat on the mat " * 9, "a"):
        assert again.encode(text) == again.encode_batch([text])[0] == TRAINED.encode(text)


def test_gpt2_from_its_two_files(shared):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "gpt2"), "<|endoftext|>")
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (50257, 50256)
    assert tokenizer.encode("Hello world, it's 2024!") == [15496, 995, 11, 340, 338, 48609, 0]


def test_neox_from_its_tokenizer_json(shared):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "neox" / "20B_tokenizer.json"), "<|endoftext|>")
    assert tokenizer.eot_id == 0 and tokenizer.vocab_size == 50277
    assert tokenizer.decode(tokenizer.encode("  def f(x):")) == "  def f(x):"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "no tokenizer.json .*: name one that has them"),
        ("nobody/nothing", "hub: .*: check the path, or connect"),
    ],
)
def test_a_source_without_a_tokenizer_is_named(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / "empty") if name == "empty" else name
    with pytest.raises(UserError, match=words) as error:
        load_tokenizer(source, "<|endoftext|>")
    assert source in str(error.value)


def test_an_unknown_end_of_text_token_is_refused(tmp_path):
    TRAINED.save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="eot_token='</s>'"):
        load_tokenizer(str(tmp_path), "</s>")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size=256 must be at least 257"):
        TokenizerConfig(vocab_size=256)
