import bz2
import gzip
import io
import lzma

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gptstar.data import compression
from gptstar.data.compression import COMPRESSIONS, Content, decompress
from gptstar.errors import UserError

COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}
TEXT = b"".join(b"%d squared is %d\n" % (i, i * i) for i in range(20_000))
suffixes = pytest.mark.parametrize("suffix", COMPRESS)


def content(data: bytes, suffix: str) -> bytes:
    return b"".join(decompress(io.BytesIO(data).read, suffix, "a.txt"))


def test_every_compression_is_tested():
    assert set(COMPRESS) == set(COMPRESSIONS)


@suffixes
@given(
    parts=st.lists(st.binary(max_size=3000), max_size=4),
    padding=st.integers(0, 3),
    chunk=st.sampled_from([64, 1000, 1 << 20]),
    step=st.sampled_from([1, 7, 1000]),
)
def test_streams_one_after_the_other_are_read_whole(suffix, parts, padding, chunk, step):
    packed = b"".join(COMPRESS[suffix](part) + bytes(4 * padding) for part in parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "CHUNK_BYTES", chunk)
        patch.setitem(COMPRESSIONS, suffix, (COMPRESSIONS[suffix][0], step))
        assert content(packed, suffix) == b"".join(parts)


@suffixes
def test_a_stream_cut_off_anywhere_is_an_error(suffix):
    packed = COMPRESS[suffix](TEXT)
    for size in (1, 3, len(packed) // 2, len(packed) - 5, len(packed) - 1):
        with pytest.raises(UserError, match=rf"a.txt: broken {suffix[1:]} compression after \d+ bytes of content"):
            content(packed[:size], suffix)
    assert content(b"", suffix) == b""


@suffixes
def test_a_damaged_second_stream_is_an_error(suffix):
    """The standard library ends silently there for xz and bz2, zstandard for a cut-off frame."""
    packed = COMPRESS[suffix](TEXT)
    for second in (b"not a stream", packed[:30], b"\xff" + packed[1:]):
        with pytest.raises(UserError, match=rf"broken {suffix[1:]} compression after {len(TEXT)} bytes"):
            content(packed + second, suffix)


@suffixes
def test_a_flipped_bit_is_an_error(suffix):
    packed = bytearray(
        COMPRESS[suffix](TEXT) if suffix != ".zst" else zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    )
    packed[len(packed) // 2] ^= 4
    with pytest.raises(UserError, match="broken"):
        content(bytes(packed), suffix)


def test_skippable_frames_are_skipped():
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    assert content(skippable + zstandard.compress(b"one") + skippable + zstandard.compress(b"two"), ".zst") == b"onetwo"


@suffixes
def test_what_shrinks_a_thousandfold_still_comes_in_small_chunks(suffix):
    packed = COMPRESS[suffix](bytes(50_000_000))
    sizes = [len(chunk) for chunk in decompress(io.BytesIO(packed).read, suffix, "a")]
    assert sum(sizes) == 50_000_000
    assert suffix == ".zst" or max(sizes) <= compression.CHUNK_BYTES


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.integers(1, 60))
def test_chunks_as_a_file(chunks, size):
    file = Content(iter(chunks))
    parts = list(iter(lambda: file.read(size), b""))
    assert b"".join(parts) == b"".join(chunks) and all(len(part) == size for part in parts[:-1])
    assert file.tell() == len(b"".join(chunks))
