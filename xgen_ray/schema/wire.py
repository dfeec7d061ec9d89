"""What every shape on the wire has in common."""

from pydantic import BaseModel, ConfigDict

# A name that is safe in a URL, a header, a log line and an application name. ``@`` parts a model's name from
# that of one of its pools.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}$"


POOL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,31}$"


LOADED_PATTERN = NAME_PATTERN.removesuffix("$") + f"(@{POOL_PATTERN[1:-1]})?$"


class Wire(BaseModel):
    """Base of all bodies: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
