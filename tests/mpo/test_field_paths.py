from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from mpo.field_paths import walk, written_path


class Cat(BaseModel, extra="forbid"):
    type: Literal["cat"]
    lives: int = 9


class Dog(BaseModel, extra="forbid"):
    type: Literal["dog"]
    dog: Cat | None = None
    tricks: list[int] = []


Pet = Annotated[Cat | Dog, Field(discriminator="type")]


class House(BaseModel):
    pet: Pet | None = None
    pets: list[Pet] = []
    names: dict[str, str | list[str]] = {}
    street: Annotated[str, AfterValidator(str.strip), AfterValidator(str.title)] | list[str] = ""


CASES = {
    "in a member": ({"pet": {"type": "dog", "tricks": ["a"]}}, ("pet", "tricks", 0)),
    "a field that is named as its model's tag": (
        {"pet": {"type": "dog", "dog": {"type": "cat", "lives": "x"}}},
        ("pet", "dog", "lives"),
    ),
    "in a list": ({"pets": [{"type": "cat"}, {"type": "cat", "lives": "x"}]}, ("pets", 1, "lives")),
    "no such member": ({"pet": {"type": "bird"}}, ("pet",)),
    "an unknown field": ({"pet": {"type": "cat", "wings": 2}}, ("pet", "wings")),
    "one of two plain types": ({"names": {"a": 1}}, ("names", "a")),
    "one of two that is validated further": ({"street": 1}, ("street",)),
    "an item of one of two": ({"names": {"a": ["b", 1]}}, ("names", "a", 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_path_holds_only_what_was_written(case: str) -> None:
    document, path = CASES[case]
    with pytest.raises(ValidationError) as caught:
        House.model_validate(document)
    assert path in [written_path(House, error["loc"]) for error in caught.value.errors()]


def test_the_models_at_the_end_of_a_path_are_found() -> None:
    assert walk(House, ("pets", 3, "dog"))[1] == [Dog]
    assert walk(House, ("pet", "dog", "dog"))[1] == [Cat]
    assert walk(House, ("pet",))[1] == [Cat, Dog]
    assert walk(House, ("nothing", "here"))[1] == []
