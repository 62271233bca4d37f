"""placeholder"""

from pathlib import Path


def run(state: Path, *, keep: bool) -> None:
    raise NotImplementedError
