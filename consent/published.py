"""Own the folder that a log is published in: what a stranger needs to check it offline.

`entries.jsonl` holds one canonical leaf per line, `checkpoint` the signed note. The files are
only read and written here; whether they are to be believed is decided in `verify`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from consent.durable import replace_files
from consent.event import LogError

ENTRIES, CHECKPOINT = "entries.jsonl", "checkpoint"
LONGEST_NOTE_BYTES = 65_536


def write_published(folder: Path, *, leaves: Iterable[bytes], note: str) -> None:
    """Write both files whole, or leave an older publication as it is.

    The two names change one after the other: who reads between them finds entries that are not
    signed yet, and reads again.

    Raises:
        OSError: A file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = b"".join(leaf + b"\n" for leaf in leaves)
    replace_files(folder, {ENTRIES: entries, CHECKPOINT: note.encode()})


def read_note(folder: Path) -> str:
    """Return the published note.

    Raises:
        LogError: The file is missing, far too long, or not UTF-8.
    """
    try:
        with (folder / CHECKPOINT).open("rb") as file:
            data = file.read(LONGEST_NOTE_BYTES + 1)
    except OSError as error:
        raise LogError(f"the published log has no readable file {CHECKPOINT!r}") from error
    if len(data) > LONGEST_NOTE_BYTES:
        raise LogError(f"the file {CHECKPOINT!r} must have at most {LONGEST_NOTE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LogError(f"the file {CHECKPOINT!r} is not UTF-8 text") from error


def read_leaves(folder: Path) -> Iterator[bytes]:
    """Give the published leaves one by one.

    Raises:
        LogError: The file is missing, or ends in the middle of an entry.
    """
    try:
        with (folder / ENTRIES).open("rb") as file:
            for index, line in enumerate(file):
                if not line.endswith(b"\n"):
                    raise LogError(f"entry {index} ends in the middle of its line", index=index)
                yield line[:-1]
    except OSError as error:
        raise LogError(f"the published log has no readable file {ENTRIES!r}") from error
