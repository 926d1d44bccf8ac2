"""Own what is handed to a witness: a head, and the proof that it extends the one it knows.

The text is the body of C2SP tlog-witness `add-checkpoint`; it travels over HTTP and inside rounds
alike. Nothing in it is believed before a `Witness` has judged it.
Source: https://c2sp.org/tlog-witness
"""

import base64
import binascii
from dataclasses import dataclass

MOST_HASHES = 63
SIZE_TYPE = "text/x.tlog.size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is sent to a witness; nothing in it is believed yet.

    Attributes:
        old_size: Tree size that the witness cosigned last, as the sender believes.
        proof: Consistency proof from there, at most 63 hashes.
        note: The checkpoint, signed by its log.
    """

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def format(self) -> str:
        """Write the body; `parse` gives an equal value back."""
        hashes = [base64.b64encode(value).decode() for value in self.proof]
        return "\n".join([f"old {self.old_size}", *hashes, "", self.note])

    @classmethod
    def parse(cls, text: str) -> "Submission":
        """Read a body.

        Raises:
            ValueError: The body is not what tlog-witness describes, in its only spelling.
        """
        head, blank, note = text.partition("\n\n")
        first, *lines = head.split("\n")
        number = first.removeprefix("old ")
        if not (blank and number.isascii() and number.isdecimal() and len(number) < 20):
            raise ValueError("a submission must begin with the old size")
        if len(lines) > MOST_HASHES:
            raise ValueError(f"a submission must hold at most {MOST_HASHES} hashes")
        try:
            proof = tuple(base64.b64decode(line, validate=True) for line in lines)
        except (binascii.Error, ValueError) as error:
            raise ValueError("a proof line of a submission is not base64") from error
        submission = cls(old_size=int(number), proof=proof, note=note)
        if any(len(value) != 32 for value in proof) or submission.format() != text:
            raise ValueError("a submission must be in its only canonical spelling")
        return submission
