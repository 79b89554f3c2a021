"""Buffers that are read as one file."""

from hypothesis import given
from hypothesis import strategies as st

from app.stores.buffer_reader import BufferReader


class TestBufferReader:
    @given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 40), st.integers(1, 30))
    def test_reads_like_one_file(self, buffers: list[bytes], offset: int, amount: int) -> None:
        whole = b"".join(buffers)
        reader = BufferReader(buffers)
        assert reader.seek(0, 2) == len(whole)
        reader.seek(offset)
        assert reader.read(amount) == whole[offset : offset + amount]
        assert reader.read() == whole[offset + amount :]
