"""The words for the parts of a split and for orders of pairs. Imports nothing: a server starts fast."""

from typing import Literal

TargetPart = Literal["easy", "difficult", "dropped"]
Part = Literal["all", "easy", "difficult", "dropped"]
Order = Literal["gap", "-gap", "abs_gap", "-abs_gap"]

TARGETS: tuple[TargetPart, ...] = ("easy", "difficult", "dropped")
PARTS: tuple[Part, ...] = ("all", *TARGETS)
