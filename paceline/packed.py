"""Draft rows as they cross the wire: bytes, which only the two ends of the way read."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIN_ROW_BITS, MAX_ROW_BITS = 8, 16


@dataclass(frozen=True, slots=True)
class Rows:
    """Sparse draft rows: per position the `width` token ids kept and their integer counts of `bits` bits.

    The counts of a row sum to 2^bits - 1 exactly and its probabilities are count / (2^bits - 1), so both sides read
    the same law bit for bit. `ids` holds `num_rows * width` little-endian uint32; `counts` a row's counts one after
    the other, lowest bit first, each row filled up to whole bytes. The coordinator passes them on unread;
    `paceline.rows` packs and unpacks them.
    """

    width: int
    ids: bytes
    counts: bytes
    bits: int = MAX_ROW_BITS

    @property
    def row_bytes(self) -> int:
        """Bytes that the counts of one row take."""
        return (self.width * self.bits + 7) // 8

    @classmethod
    def certain(cls, token_ids: tuple[int, ...]) -> Rows:
        """Rows of width 1 that give each of `token_ids` all the mass: the truth about a draft that was not sampled."""
        return cls(1, b"".join(token_id.to_bytes(4, "little") for token_id in token_ids), b"\xff\xff" * len(token_ids))

    @property
    def num_rows(self) -> int:
        return len(self.counts) // self.row_bytes

    def drop(self, num_rows: int) -> Rows:
        """The same rows without the first `num_rows`."""
        ids, counts = self.ids[4 * num_rows * self.width :], self.counts[num_rows * self.row_bytes :]
        return replace(self, ids=ids, counts=counts)
