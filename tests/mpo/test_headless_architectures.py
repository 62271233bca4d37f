import json
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LANGUAGE_MODELS,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as WITH_HEADS,
)

from mpo import headless_architectures
from mpo.errors import UnusableModel
from mpo.headless_architectures import HEADLESS, LISTED, refuse_headless
from mpo.job_spec import JobSpec
from mpo.plan import PlannedStage, Source, expand

MODEL = Source.model("base")


def stages_of(method: object) -> list[PlannedStage]:
    return expand(
        JobSpec.model_validate({"method": method}), model="base", dataset="pairs", leaf=lambda _: None
    )


def folder_of(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_names_are_those_for_which_transformers_has_a_language_model_and_no_class_with_a_head() -> None:
    if not version("transformers").startswith(LISTED):
        assert not headless_architectures._is_listed_version(), "another version's list is not heard"
        return
    assert not HEADLESS & WITH_HEADS.keys(), "would be refused wrongly"
    assert LANGUAGE_MODELS.keys() - WITH_HEADS.keys() <= HEADLESS, "would be refused when their turn has come"


@pytest.fixture(autouse=True)
def listed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is the installed version's, whichever that is, but where a test is of that."""
    if "version" not in request.node.name:
        monkeypatch.setattr(headless_architectures, "_is_listed_version", lambda: True)


@pytest.mark.parametrize(("installed", "refused"), [("5.24.3", True), ("5.25.0", False), (None, True)])
def test_another_version_s_list_refuses_nothing(
    installed: str | None, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed_version(_package: str) -> str:
        if installed is None:
            raise PackageNotFoundError
        return installed

    monkeypatch.setattr(headless_architectures, "version", installed_version)
    folders = {MODEL: folder_of(tmp_path, {"model_type": "mamba"})}
    with pytest.raises(UnusableModel) if refused else nullcontext():
        refuse_headless(stages_of({"type": "mpo"}), folders)


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ({"type": "mpo"}, "reward_model_fold_1"),
        ({"type": "mpo", "reward_model": {"backbone": "sft"}}, "reward_model_fold_1"),
        ({"type": "dpo"}, "judge"),
    ],
)
def test_the_first_reward_model_that_cannot_be_made_is_named(
    method: dict[str, object], stage: str, tmp_path: Path
) -> None:
    folders = {MODEL: folder_of(tmp_path, {"model_type": "mamba"})}
    with pytest.raises(UnusableModel, match=r"'mamba'.*evaluate: null") as caught:
        refuse_headless(stages_of(method), folders)
    assert caught.value.facts == {"architecture": "mamba", "stage": stage}


def test_a_plan_without_reward_models_passes(tmp_path: Path) -> None:
    folders = {MODEL: folder_of(tmp_path, {"model_type": "mamba"})}
    refuse_headless(stages_of({"type": "dpo", "evaluate": None}), folders)


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {}, ["mamba"], {"model_type": ["mamba"]}])
def test_a_model_with_a_head_or_one_that_does_not_tell_passes(config: object, tmp_path: Path) -> None:
    refuse_headless(stages_of({"type": "mpo"}), {MODEL: folder_of(tmp_path, config)})
    refuse_headless(stages_of({"type": "mpo"}), {MODEL: tmp_path / "nowhere"})
