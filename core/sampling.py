"""What API processes and workers say to the sampler, and how. Torch-free.

One Redis stream carries the requests, each an entry with the field `body` (JSON of a class below); replies go
to the stream that the request names, as entries with `id` and `body`.
"""

import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from core.errors import ServiceError, Unavailable
from core.ids import new_id
from core.settings import settings

REQUESTS = "mpo:sampler:requests"
GROUP = "samplers"
ALIVE = "mpo:sampler:alive"
CONSUMER_ALIVE = "mpo:sampler:consumer:"
"""Before a sampler's name: there for as long as that one is alive."""
ALIVE_SECONDS = 7
"""With the two looks of whoever waits it comes to less than the ten seconds in which a death is told."""
MAX_PENDING_REQUESTS = 1_000
MAX_REPLIES = 10_000
REPLY_TTL_SECONDS = 600


class Wire(BaseModel):
    """Frozen; unknown fields refused: both sides are of one version."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFiles(Wire):
    """A model by the name that people use and by where its files are; sha256 is what a cache goes by.

    base: of a model that was trained as an adapter, what it was trained over.
    """

    name: str
    location: str
    sha256: str
    base: "ModelFiles | None" = None

    @classmethod
    def of(cls, located: dict[str, Any], base: dict[str, Any] | None) -> "ModelFiles":
        """From where a model is, and its base, as runs' inputs tell it: with `name`, `location`, `sha256`."""
        name, location, sha256 = located["name"], located["location"], located["sha256"]
        of_base = None if base is None else cls.of(base, None)
        return cls(name=name, location=location, sha256=sha256, base=of_base)


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("should hold no half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
"""A string that UTF-8 can spell: JSON may hold others, and no tokenizer takes them."""


class Message(Wire):
    """A turn of a conversation."""

    role: Text
    content: Text


Prompt = str | list[Message] | list[int]


class SampleRequest(Wire):
    """Responses to prompts: n for each, in order, each seeded by seed and its place."""

    op: Literal["sample"] = "sample"
    model: ModelFiles
    prompts: list[Prompt]
    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = []
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    """Whether parts are told as they come; the reply itself holds everything all the same."""


class SampledText(Wire):
    """One response. The logprob fields are parallel to tokens, null unless asked for."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None
    top_bytes: list[dict[str, list[int]]] | None = None
    """Of those names in top_logprobs that are not their tokens' texts, what the tokens stand for."""


class PromptSamples(Wire):
    """What one prompt got."""

    prompt_tokens: int
    samples: list[SampledText]


class SampleReply(Wire):
    """Answers, one for each prompt in order."""

    op: Literal["sample"] = "sample"
    results: list[PromptSamples]


class SamplePart(Wire):
    """What one response has got since the last part; index counts through the prompts, n for each.

    The logprob fields are of the tokens that the text holds in full by now, and not of those told before.
    offset, token_offset: characters and tokens told before. A sampler that takes over begins anew, and the
    same seed gives the same text: so whoever reads leaves out what has come already.
    """

    index: int
    text: str
    offset: int = 0
    token_offset: int = 0
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None
    top_bytes: list[dict[str, list[int]]] | None = None


class SampleParts(Wire):
    """Before the reply to a request that asks for a stream: what its responses have got."""

    op: Literal["parts"] = "parts"
    parts: list[SamplePart]


class ScoreItem(Wire):
    """A response to score, with whether it ended by itself."""

    prompt: str | list[Message]
    response: str | list[Message]
    terminated: bool = True
    ends_in_its_end: bool = False
    """Whether the text may end in the spelling of the token that ends a response, which is then left out."""


class ScoreRequest(Wire):
    """Rewards, fp32, offset subtracted."""

    op: Literal["score"] = "score"
    model: ModelFiles
    items: list[ScoreItem]


class ScoreReply(Wire):
    """One reward an item, in order."""

    op: Literal["score"] = "score"
    rewards: list[float]


class TokenizeRequest(Wire):
    """Token ids of a text or a conversation."""

    op: Literal["tokenize"] = "tokenize"
    model: ModelFiles
    text: str | list[Message]
    add_special_tokens: bool = True


class TokenizeReply(Wire):
    """The ids and what each spells."""

    op: Literal["tokenize"] = "tokenize"
    token_ids: list[int]
    tokens: list[str]


class DetokenizeRequest(Wire):
    """The text of token ids."""

    op: Literal["detokenize"] = "detokenize"
    model: ModelFiles
    token_ids: list[int]


class DetokenizeReply(Wire):
    """The text."""

    op: Literal["detokenize"] = "detokenize"
    text: str


class ErrorReply(Wire):
    """Why there is no answer: what `core.errors.ServiceError` carries."""

    op: Literal["error"] = "error"
    code: str
    status: int
    detail: str
    param: str | None = None


Request = Annotated[
    SampleRequest | ScoreRequest | TokenizeRequest | DetokenizeRequest, Field(discriminator="op")
]
Reply = Annotated[
    SampleReply | SampleParts | ScoreReply | TokenizeReply | DetokenizeReply | ErrorReply,
    Field(discriminator="op"),
]


class Envelope(Wire):
    """A request on its way: who asks, until when (Unix seconds) the answer is of use."""

    id: str
    reply_to: str
    deadline: float
    request: Request


REPLIES: TypeAdapter[Any] = TypeAdapter(Reply)


class SamplerRefused(ServiceError):
    """The sampler cannot do what was asked; code and status are the sampler's."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.detail, param=reply.param)
        self.code, self.status, self.title = reply.code, reply.status, "The model cannot do this"  # type: ignore[misc]
        self.param = reply.param
        self.retryable = reply.status == Unavailable.status  # type: ignore[misc]


class NoSampler(Unavailable):
    """No sampler is running: try again in a few seconds."""

    code, title = "no_sampler", "No sampler"


class SamplerBusy(ServiceError):
    """The sampler's queue is full: try again in a few seconds."""

    code, status, title = "sampler_busy", 429, "Too many requests"
    retryable = True
    retry_after_seconds = 2


def reply_stream(process_id: str) -> str:
    """The stream on which a process receives its replies."""
    return f"mpo:sampler:replies:{process_id}"


def envelope(request: Request, process_id: str) -> Envelope:
    """A request made ready to send, with an id of its own."""
    deadline = time.time() + settings().sampler_wait_seconds
    return Envelope(
        id=new_id("request"), reply_to=reply_stream(process_id), deadline=deadline, request=request
    )
