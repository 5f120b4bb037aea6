"""What a digest of files covers, and what it does not."""

from pathlib import Path

import pytest

from fastdiff.data.digest import BLOCK, NUM_BLOCKS, file_digest, listing_digest


def test_digest_covers_a_small_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = bytearray(3 * BLOCK + 7)
    path.write_bytes(contents)
    first = file_digest(path)
    for place in (0, BLOCK, len(contents) - 1):
        changed = contents.copy()
        changed[place] = 1
        path.write_bytes(changed)
        assert file_digest(path) != first
    path.write_bytes(contents)
    assert file_digest(path) == first


def test_digest_of_a_large_file_covers_its_ends_its_size_and_64_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a"
    size = 3 * NUM_BLOCKS * BLOCK
    with path.open("wb") as file:
        file.truncate(size)
    first = file_digest(path)
    seen = 0
    for place in range(BLOCK // 2, size, BLOCK):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"1")
            file.flush()
            seen += file_digest(path) != first
            file.seek(place)
            file.write(b"\0")
    # A block that two of those read meet counts twice.
    assert NUM_BLOCKS <= seen <= 2 * NUM_BLOCKS
    with path.open("r+b") as file:
        file.truncate(size - 1)
    assert file_digest(path) != first


def test_digest_names_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: cannot be read: No such file"):
        file_digest(tmp_path / "gone")


def test_digest_of_a_listing_follows_entries_order_and_options() -> None:
    entries = [("a", 1), ("b", 2)]
    digests = [
        listing_digest(entries),
        listing_digest(entries[::-1]),
        listing_digest(entries, size=8),
        listing_digest([("a", 12)]),
        listing_digest([("a1", 2)]),
    ]
    assert len(set(digests)) == len(digests)
    assert listing_digest(tuple(entries)) == digests[0]
