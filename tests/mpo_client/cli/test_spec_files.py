from pathlib import Path
from typing import Any

import pytest

from mpo_client.cli.error_lines import Misuse
from mpo_client.cli.spec_files import change, read_spec


def test_yaml_has_numbers_as_json_has_them(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("method: {type: mpo, dpo: {learning_rate: 1e-4, beta: .5}}\nseed: 3\nname: 1e-4x\n")
    assert read_spec(str(file)) == {
        "method": {"type": "mpo", "dpo": {"learning_rate": 1e-4, "beta": 0.5}},
        "seed": 3,
        "name": "1e-4x",
    }


def test_a_date_is_no_value_of_a_spec(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("name: 2026-01-01\n")
    with pytest.raises(Misuse, match="job spec"):
        read_spec(str(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method.split.threshold=1.5", {"method": {"type": "mpo", "split": {"threshold": 1.5}}}),
        ("method.sft=null", {"method": {"type": "mpo", "sft": None}}),
        ("method.type=dpo", {"method": {"type": "dpo"}}),
        ('labels={"a": "b"}', {"method": {"type": "mpo"}, "labels": {"a": "b"}}),
        ("name=a=b", {"method": {"type": "mpo"}, "name": "a=b"}),
    ],
)
def test_a_field_is_set(text: str, expected: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"method": {"type": "mpo"}}
    assert change(spec, [text]) == expected
    assert spec == {"method": {"type": "mpo"}}


def test_stages_are_found_by_name_or_number() -> None:
    spec: dict[str, Any] = {"stages": [{"name": "a"}, {"name": "b", "beta": 1}]}
    changed = change(spec, ["stages.b.beta=2", "stages.0.beta=3"])
    assert changed == {"stages": [{"name": "a", "beta": 3}, {"name": "b", "beta": 2}]}
    with pytest.raises(Misuse, match="no member c"):
        change(spec, ["stages.c.beta=2"])
