"""Own who answers for a person's data, and how that person reaches them and takes consent back."""

import re
from dataclasses import dataclass

from consent.canonical import JsonValue
from consent.fields import Fields
from consent.wording import Words

_COUNTRY = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,3})?")
_DURATION = re.compile(r"P[1-9][0-9]{0,3}[DMY]")
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The controller, as a notice and a receipt name it.

    Attributes:
        id: Short name, such as "brand-a.example".
        name: Name as registered.
        address: Postal address on one line.
        country: ISO 3166 code of its seat.
        contact: Desk or officer that answers.
        email: Where that desk is written to.
        phone: Where it is called.
        authority: Supervisory authority for complaints.
        notice_url: Where the notice can be read again.
        withdraw: How consent is taken back, in plain words.
        withdraw_steps: Steps to take it back; at most `give_steps`.
        give_steps: Steps it took to give it.
        storage_location: ISO 3166 code of the place where data is kept.
        retention: How long data is kept after the end, as ISO 8601, such as "P6M".
    """

    id: str
    name: str
    address: str
    country: str
    contact: str
    email: str
    phone: str
    authority: str
    notice_url: str
    withdraw: Words
    withdraw_steps: int
    give_steps: int
    storage_location: str
    retention: str

    def __post_init__(self) -> None:
        for field in ("name", "address", "contact", "email", "phone", "authority", "notice_url"):
            text: str = getattr(self, field)
            # Printable leaves out line breaks and the marks that turn text around.
            if not text.strip() or not text.isprintable() or len(text) > 300:
                raise ValueError(f"the {field} of a controller must be printable and not empty")
        if not _ID.fullmatch(self.id):
            raise ValueError("the id of a controller must be lower-case letters, digits, '.', '-'")
        for field in ("country", "storage_location"):
            if not _COUNTRY.fullmatch(getattr(self, field)):
                raise ValueError(f"the {field} of a controller must be an ISO 3166 code")
        if not _DURATION.fullmatch(self.retention):
            raise ValueError("the retention of a controller must be an ISO 8601 duration like P6M")
        if not 1 <= self.withdraw_steps <= self.give_steps:
            raise ValueError(
                "taking consent back must not need more steps than giving it: "
                f"{self.withdraw_steps} against {self.give_steps}"
            )


def format_controller(controller: Controller) -> dict[str, JsonValue]:
    """Write a controller as JSON."""
    return {
        "id": controller.id,
        "name": controller.name,
        "address": controller.address,
        "country": controller.country,
        "contact": controller.contact,
        "email": controller.email,
        "phone": controller.phone,
        "authority": controller.authority,
        "notice_url": controller.notice_url,
        "withdraw": {"en": controller.withdraw.en, "zh": controller.withdraw.zh},
        "withdraw_steps": controller.withdraw_steps,
        "give_steps": controller.give_steps,
        "storage_location": controller.storage_location,
        "retention": controller.retention,
    }


def parse_controller(fields: Fields) -> Controller:
    """Read a controller back.

    Raises:
        ValueError: A field is missing, unknown, of the wrong kind, or breaks a rule.
    """
    withdraw = fields.inner("withdraw")
    controller = Controller(
        id=fields.text("id"),
        name=fields.text("name"),
        address=fields.text("address"),
        country=fields.text("country"),
        contact=fields.text("contact"),
        email=fields.text("email"),
        phone=fields.text("phone"),
        authority=fields.text("authority"),
        notice_url=fields.text("notice_url"),
        withdraw=Words(en=withdraw.text("en"), zh=withdraw.text("zh")),
        withdraw_steps=fields.count("withdraw_steps"),
        give_steps=fields.count("give_steps"),
        storage_location=fields.text("storage_location"),
        retention=fields.text("retention"),
    )
    withdraw.finish()
    fields.finish()
    return controller
