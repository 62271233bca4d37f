"""What the service acknowledged, and how each object has to end: the client's side of every promise."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock

DELETED = "deleted"


@dataclass
class Entry:
    """An acknowledged object. name: the client's own, of this object alone. ends: how it may end.

    digest: SHA-256 of an upload's bytes; None elsewhere.
    """

    noun: str
    id: str
    name: str
    ends: list[str]
    digest: str | None = None
    seed: int | None = None


@dataclass
class Ledger:
    """Safe from several threads."""

    entries: dict[str, Entry] = field(default_factory=dict)
    names: list[tuple[str, str]] = field(default_factory=list)
    """Noun and name of all that was ever asked for, also where no answer came."""
    answers: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def asked(self, noun: str, name: str) -> None:
        """An object of this name is about to be asked for."""
        with self._lock:
            self.names.append((noun, name))

    def acknowledged(self, entry: Entry) -> None:
        """A 201 or 202 named the object."""
        with self._lock:
            self.entries[entry.id] = entry

    def expect(self, id_: str, *ends: str) -> None:
        """From now on the object is to end so."""
        with self._lock:
            self.entries[id_].ends = list(ends)

    def heard(self, answer: str, detail: str = "") -> None:
        """Counts a status or the lack of one; keeps what nobody should ever have been told."""
        with self._lock:
            self.answers[answer] += 1
            if detail and len(self.errors) < 50:
                self.errors.append(detail)

    def of(self, noun: str) -> list[Entry]:
        """The acknowledged objects of a noun, in order."""
        with self._lock:
            return [entry for entry in self.entries.values() if entry.noun == noun]

    def counts(self) -> dict[str, int]:
        """Acknowledged objects by noun."""
        with self._lock:
            return dict(Counter(entry.noun for entry in self.entries.values()))

    def save(self, path: Path) -> None:
        """For whoever looks into a broken promise later."""
        with self._lock:
            kept = {"entries": [asdict(e) for e in self.entries.values()], "answers": dict(self.answers)}
            path.write_text(json.dumps({**kept, "errors": self.errors}, indent=1))
