"""Bodies of the inference calls: OpenAI's shapes, and our own for rewards and tokens."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from app.wire import Body
from core.sampling import Message, Text

MAX_SEQUENCES = 4_096
ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class OpenAIBody(BaseModel):
    """Fields that this service does not know are ignored, as OpenAI's clients send many."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def _as_list(value: object) -> object:
    return [] if value is None else [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16), BeforeValidator(_as_list)
]


class StreamOptions(OpenAIBody):
    """include_usage: the last event counts the tokens."""

    include_usage: bool = False


class SamplingFields(OpenAIBody):
    """What completions and chat completions share."""

    model: ModelName
    n: int = Field(1, ge=1, le=128, description="Responses a prompt.")
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False, description="0: the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="The same seed gives the same text.")
    stop: Stops = Field([], description="A string or a list of them; a text ends before the first.")
    stream: bool = Field(False, description="Tell the text as it comes, as server-sent events.")
    stream_options: StreamOptions = Field(default_factory=lambda: StreamOptions())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        """OpenAI takes null for a field's default."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class CompletionBody(SamplingFields):
    """`prompt`: a text, token ids, or a list of either."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    max_tokens: int = Field(16, ge=0, le=1_000_000, description="Bounded by the model's context.")
    logprobs: int | None = Field(None, ge=0, le=20, description="The likeliest tokens to show at each place.")
    echo: bool = Field(False, description="Show the prompt before the text, with its logprobs.")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TextPart(OpenAIBody):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class ChatMessage(OpenAIBody):
    """A turn; content in parts is joined."""

    role: Text = Field(min_length=1, max_length=100)
    content: Text | list[TextPart]

    def to_message(self) -> Message:
        """The turn as text."""
        if isinstance(self.content, str):
            return Message(role=self.role, content=self.content)
        return Message(role=self.role, content="".join(part.text for part in self.content))


class ChatBody(SamplingFields):
    """A conversation, rendered by the model's chat template."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000, description="None: up to the context's end.")
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Newer name of the same.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


class RewardItem(Body):
    """A response to score. terminated: whether it ended by itself, rather than being cut."""

    prompt: Text | Annotated[list[Message], Field(min_length=1)]
    response: Text | Annotated[list[Message], Field(min_length=1)]
    terminated: bool = True


class RewardsBody(Body):
    """Responses to score with one reward model."""

    model: ModelName
    items: list[RewardItem] = Field(min_length=1, max_length=MAX_SEQUENCES)


class Reward(BaseModel):
    """A score, fp32, the model's offset subtracted."""

    index: int
    reward: float


class Rewards(BaseModel):
    """One reward an item, in order."""

    object: Literal["list"] = "list"
    model: str
    data: list[Reward]


class TrainerQueries(OpenAIBody):
    """What a trainer asks of a remote reward model. prompts: what each query begins with, if it is told."""

    query: Annotated[list[Text], Field(min_length=1, max_length=MAX_SEQUENCES), BeforeValidator(_as_list)]
    prompts: list[Text] | None = None

    @model_validator(mode="after")
    def _as_many_prompts(self) -> Self:
        if self.prompts is not None and len(self.prompts) != len(self.query):
            raise ValueError("should hold a prompt for each query")
        return self


class TrainerRewards(BaseModel):
    """Rewards in the order of the queries; scores are the same."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, float] = Field(default_factory=dict)


class TokenizeBody(Body):
    """A text, or a conversation, which goes through the chat template."""

    model: ModelName
    text: Text | Annotated[list[Message], Field(min_length=1)]
    add_special_tokens: bool = True


class Tokens(BaseModel):
    """Token ids and what each spells."""

    object: Literal["tokens"] = "tokens"
    model: str
    token_ids: list[int]
    tokens: list[str]
    count: int


class DetokenizeBody(Body):
    """Token ids to spell."""

    model: ModelName
    token_ids: list[Annotated[StrictInt, Field(ge=0, lt=2**31)]] = Field(max_length=1_000_000)


class DetokenizedText(BaseModel):
    """The text, special tokens left out."""

    object: Literal["text"] = "text"
    model: str
    text: str
