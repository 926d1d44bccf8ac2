"""Own the C2SP signed note: a text, a blank line, and one signature per line.

Only the format lives here. Whose signature counts, and what the text means, is decided in
`checkpoint`. Source: https://c2sp.org/signed-note
"""

import base64
import binascii
from dataclasses import dataclass

MOST_SIGNATURES = 64
_DASH = "\N{EM DASH} "


class NoteError(Exception):
    """A note is malformed, or is not signed as it must be."""


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line.

    Attributes:
        name: Key name, which only disambiguates.
        key_id: Four bytes that stand for name, type and key.
        signature: What the type defines; 64 bytes for Ed25519.
    """

    name: str
    key_id: bytes
    signature: bytes

    def format(self) -> str:
        """Write the line with its newline."""
        data = base64.b64encode(self.key_id + self.signature).decode()
        return f"{_DASH}{self.name} {data}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text with its signatures, none of them checked yet.

    Attributes:
        text: Signed text with its final newline.
        signatures: In the order of the note.
    """

    text: str
    signatures: tuple[NoteSignature, ...]

    def format(self) -> str:
        """Write the note."""
        return self.text + "\n" + "".join(line.format() for line in self.signatures)

    @classmethod
    def parse(cls, note: str) -> "Note":
        """Read a note without believing it.

        Raises:
            NoteError: The text is not a signed note in its only spelling.
        """
        if any(ord(character) < 0x20 and character != "\n" for character in note):
            raise NoteError("a note must not hold control characters")
        try:
            note.encode()
        except UnicodeEncodeError as error:
            raise NoteError("a note must be valid UTF-8") from error
        text, blank, tail = note.rpartition("\n\n")
        if not blank or not text or not tail.endswith("\n"):
            raise NoteError("a note must be a text, a blank line and at least one signature line")
        lines = tail.removesuffix("\n").split("\n")
        if len(lines) > MOST_SIGNATURES:
            raise NoteError(f"a note must hold at most {MOST_SIGNATURES} signatures")
        parsed = cls(text + "\n", tuple(_parse_line(line) for line in lines))
        if parsed.format() != note:
            raise NoteError("a signature line of the note is not in canonical base64")
        return parsed

    def find(self, name: str, key_id: bytes) -> NoteSignature | None:
        """Return the first signature of a key, or None when that key did not sign."""
        for line in self.signatures:
            if line.name == name and line.key_id == key_id:
                return line
        return None

    def with_signature(self, signature: NoteSignature) -> "Note":
        """Return a note that also holds this signature, in place of an older one of its key."""
        kept = tuple(
            line
            for line in self.signatures
            if (line.name, line.key_id) != (signature.name, signature.key_id)
        )
        return Note(self.text, (*kept, signature))


def _has_space(name: str) -> bool:
    return any(character.isspace() for character in name)


def _parse_line(line: str) -> NoteSignature:
    name, space, data = line.removeprefix(_DASH).partition(" ")
    if not (line.startswith(_DASH) and name and space) or "+" in name or _has_space(name):
        raise NoteError("a signature line must read: dash, space, key name, space, base64")
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError("a signature line of the note is not in canonical base64") from error
    if len(decoded) <= 4:
        raise NoteError("a signature line of the note holds no signature")
    return NoteSignature(name, decoded[:4], decoded[4:])
