"""Errors of the library: each carries a stable code and whether trying again can help."""

from typing import ClassVar


class MPOError(Exception):
    """Root of every error that this project raises on purpose.

    The facts are keyword arguments, so that whoever translates the error (to HTTP, to a run's row) need not
    parse a sentence.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "", **facts: object) -> None:
        self.detail = detail or (self.__doc__ or self.code).strip().splitlines()[0]
        self.facts = facts
        super().__init__(self.detail)


class BadRow(MPOError):
    """A row of an uploaded file cannot be used."""

    code = "bad_row"

    def __init__(self, message: str, *, line: int, column: int | None = None) -> None:
        super().__init__(message, line=line, column=column)
        self.message, self.line, self.column = message, line, column


class InvalidDataset(MPOError):
    """The file holds more bad rows than allowed, or no good one."""

    code = "invalid_dataset"


class TooFewPrompts(MPOError):
    """There are too few prompt groups to hold some out or to make the folds."""

    code = "too_few_prompts"


class InvalidScores(MPOError):
    """The scores do not fit the pairs, or are no numbers."""

    code = "invalid_scores"


class InvalidRange(MPOError):
    """A range whose lower end is not below its upper end."""

    code = "invalid_range"


class EmptySplit(MPOError):
    """The threshold leaves a part of the split empty that training needs."""

    code = "empty_split"


class TooFewRows(MPOError):
    """A single row is left to train on."""

    code = "too_few_rows"


class NoChatTemplate(MPOError):
    """The dataset holds messages, and the model has no chat template to render them."""

    code = "no_chat_template"


class ChatTemplateRefused(MPOError):
    """The model's chat template refuses a conversation, or writes it in a way that cannot be followed."""

    code = "chat_template_refused"


class UnusableModel(MPOError):
    """The model's files cannot serve the stage that asks for them."""

    code = "unusable_model"


class OutOfMemory(MPOError):
    """The memory of the machine, or of its GPU, does not hold the stage."""

    code = "out_of_memory"


class TrainingDiverged(MPOError):
    """The loss or a gradient is not finite."""

    code = "training_diverged"


class ReferenceChanged(MPOError):
    """The checkpoint holds the log-probabilities of another reference."""

    code = "reference_changed"


class StageInterrupted(MPOError):
    """The stage was asked to stop and has saved what it could."""

    code = "interrupted"
    retryable = True


class RankFailed(MPOError):
    """One of the processes that train together ended without a word."""

    code = "rank_failed"
    retryable = True


class InvalidSpec(MPOError):
    """What a run is asked to do cannot be done as it is written."""

    code = "invalid_spec"


class TooFewDevices(InvalidSpec):
    """There are fewer GPUs than processes that are to train together."""

    code = "too_few_devices"


class NotEnoughMemory(InvalidSpec):
    """A stage is estimated to need more memory than there is."""

    code = "not_enough_memory"


class StageFailed(MPOError):
    """A stage of a run in one process has failed; the facts name it."""

    code = "stage_failed"
