import pytest

from mpo.responses import distinct_prompts, even_parts


@pytest.mark.parametrize(
    ("count", "parts", "lengths"), [(10, 4, [2, 3, 2, 3]), (2, 4, [1, 1]), (65, 2, [32, 33])]
)
def test_parts_are_even(count: int, parts: int, lengths: list[int]) -> None:
    ranges = list(even_parts(count, parts))
    assert [len(part) for part in ranges] == lengths
    assert [i for part in ranges for i in part] == list(range(count))


def test_a_prompt_counts_once() -> None:
    message = [{"role": "user", "content": "b"}]
    assert distinct_prompts(["b", "a", message, "b", list(message)]) == ["b", "a", message]
