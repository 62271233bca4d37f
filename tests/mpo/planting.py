"""Plants a fault into a function of the library, to see whether a test finds it."""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def planted(function: Callable[..., Any], text: str, fault: str) -> Iterator[None]:
    """The function with one place of its source replaced, for whoever imported it under whatever name.

    Raises AssertionError where the text does not stand there exactly once: a fault that is not planted would
    be found by no test, and by every one.
    """
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(text) == 1, f"{function.__qualname__} holds {text!r} {source.count(text)} times"
    mutated = source.replace(text, fault)
    # Decorators would wrap the function again; what is wanted is its body.
    mutated = mutated[mutated.index("def ") :]
    made: dict[str, Any] = {}
    plain = inspect.unwrap(function)
    exec(compile(mutated, inspect.getfile(function), "exec"), plain.__globals__, made)  # our own source
    sound = plain.__code__
    plain.__code__ = made[plain.__name__].__code__
    try:
        yield
    finally:
        plain.__code__ = sound
