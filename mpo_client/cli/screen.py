"""Where results go: tables and texts for people, or one JSON document. Notes for people go to stderr."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, JsonValue
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Piped output is not cut: a program that reads it has no edge.
PIPED_WIDTH = 500
STYLES = {
    "succeeded": "green",
    "ready": "green",
    "running": "cyan",
    "validating": "cyan",
    "paused": "yellow",
    "failed": "red",
    "invalid": "red",
    "cancelled": "magenta",
    "cached": "green",
}


class Screen:
    """Stdout and stderr. Texts of others are shown as they are: no markup, no escape sequences."""

    def __init__(self, *, as_json: bool = False, console: Console | None = None) -> None:
        self.as_json = as_json
        self.out = console or _console(stderr=False)
        self.notes = _console(stderr=True)

    def document(self, value: BaseModel | Sequence[BaseModel]) -> None:
        """What the service answered, as JSON."""
        if isinstance(value, BaseModel):
            self.value(_json_of(value))
        else:
            self.value({"object": "list", "data": [_json_of(each) for each in value]})

    def value(self, value: JsonValue) -> None:
        """A JSON document."""
        print(json.dumps(value, indent=2, ensure_ascii=False))

    def line_of(self, value: BaseModel) -> None:
        """A JSON document on a line of its own, at once."""
        print(json.dumps(_json_of(value), ensure_ascii=False), flush=True)

    def show(self, *renderables: RenderableType) -> None:
        """For people, on stdout."""
        for each in renderables:
            self.out.print(each, soft_wrap=isinstance(each, str))

    def note(self, text: str) -> None:
        """For people, on stderr: what happened, what to do next."""
        self.notes.print(plain(text), soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=PIPED_WIDTH)
    return console


def _json_of(value: BaseModel) -> JsonValue:
    # By JSON, so that numbers that are none become null; unset fields are this package's, not the service's.
    found: JsonValue = json.loads(value.model_dump_json(exclude_unset=True))
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> Table:
    """A table of cells; the first column is never cut, `numbers` stand to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, name in enumerate(head):
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        made.add_column(name, no_wrap=True, overflow="fold" if place == 0 else "ellipsis", justify=justify)
    for row in rows:
        made.add_row(*(cell(each) for each in row))
    return made


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values, a line each; what is None is left out."""
    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            made.add_row(name, cell(value))
    return made


def cell(value: object) -> Text:
    """A value as people read it; statuses have colours."""
    if value is None:
        return Text("")
    if isinstance(value, Text):
        return value
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    if isinstance(value, int):
        return Text(f"{value:,}")
    text = plain(str(value))
    return Text(text, style=STYLES.get(text, ""))


def plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def moment(seconds: int | None) -> str | None:
    """A time as the clock on this wall shows it."""
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float | None) -> str:
    """`45 s`, `3 min`, `2 h 10`."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02}"


def size(count: float | None) -> str:
    """Bytes in the unit that suits them."""
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
