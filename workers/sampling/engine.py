"""Answers requests: those to sample go on side by side, a token of each at a turn; the others at once."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import isfinite

from core.sampling import (
    DetokenizeReply,
    DetokenizeRequest,
    Reply,
    SampleReply,
    SampleRequest,
    ScoreReply,
    ScoreRequest,
    TokenizeReply,
    TokenizeRequest,
)
from mpo.errors import MPOError, UnusableModel
from mpo.reward_model.score import score_responses
from mpo.tokenization import encode_prompt
from workers.sampling.answering import Answering
from workers.sampling.mailbox import Letter, Mail
from workers.sampling.model_batch import Asked, ModelBatch
from workers.sampling.model_cache import Loading, ModelCache, NoRoom
from workers.sampling.post import Outbox, Post
from workers.sampling.prompt_logprobs import TokenLogprobs, prompt_logprobs
from workers.sampling.prompts import check_ids, contents, encode_items
from workers.sampling.refusals import error_reply

LOAD_PATIENCE_SECONDS = 5.0
"""Whoever asks for a model that is being loaded waits so long, and is asked to come again then."""
LOOK_SECONDS = 0.5
"""How often the engine looks whether anybody still waits for what it does."""

logger = logging.getLogger(__name__)


class Engine:
    """For one thread."""

    def __init__(
        self, cache: ModelCache, outbox: Outbox, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache, self._outbox, self._clock = cache, outbox, clock
        self._new: deque[tuple[Mail, float]] = deque()
        self._batches: dict[str, ModelBatch] = {}
        self._post = Post(outbox)
        self._alone: deque[Mail] = deque()
        self._next_look = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether a turn would do nothing."""
        return not (self._new or self._batches or self._alone) and self._post.is_empty

    @property
    def waits(self) -> bool:
        """Whether there is nothing to do but to wait for a model."""
        return not (self._batches or self._alone) and self._post.is_empty

    def close(self) -> None:
        """Load nothing more, and send nothing."""
        self._cache.close()
        self._post.close()

    def take(self, mail: Mail) -> None:
        """A request to answer."""
        self._new.append((mail, self._clock()))

    def turn(self) -> None:
        """Start what can be started, draw a token of each response, send what is done.

        Raises what the outbox raised since; what could not be sent is kept for the next turn.
        """
        self._post.send(wait=False)
        self._let_go_of_what_nobody_awaits()
        for _ in range(len(self._new)):
            mail, since = self._new.popleft()
            if not self._start(mail, since):
                self._new.append((mail, since))
        if self._alone and not self._batches:
            self._start(self._alone.popleft(), 0.0)
        for key, batch in list(self._batches.items()):
            self._advance(key, batch)
        self._post.send(wait=not (self._batches or self._alone))

    def _start(self, mail: Mail, since: float) -> bool:
        """False where its model is not there yet."""
        request = mail.envelope.request
        try:
            if isinstance(request, SampleRequest):
                self._join(mail, request)
            else:
                self._reply(mail, self._answer_now(request))
        except NoRoom:
            return False
        except Loading as loading:
            if self._clock() - since < LOAD_PATIENCE_SECONDS:
                return False
            self._reply(mail, error_reply(loading))
        except Exception as error:
            self._reply(mail, error_reply(error))  # a border: no request may end the process
        return True

    def _join(self, mail: Mail, request: SampleRequest) -> None:
        loaded = self._cache.tokenizer(request.model)
        model = self._cache.model(request.model, "policy", self._in_use)
        batch = self._batches.get(model.network) or ModelBatch(model, loaded.terminators.pad_id)
        asked = Asked(mail, Answering(request, loaded), model)
        self._batches[model.network] = batch
        batch.join(asked)

    @property
    def _in_use(self) -> set[str]:
        """Digests of the models that are answering."""
        return set().union(*(batch.digests for batch in self._batches.values()))

    def _advance(self, key: str, batch: ModelBatch) -> None:
        try:
            complete = batch.turn()
        except Exception as error:
            del self._batches[key]
            self._fail(batch, error)
            return
        if not batch.asked:
            del self._batches[key]
        for asked in complete:
            self._complete(asked)
        for asked in batch.asked:
            if (parts := asked.answering.parts()) is not None:
                self._post.add(Letter(asked.mail, parts, is_last=False))

    def _complete(self, asked: Asked) -> None:
        try:
            reply: Reply = _sampled(asked)
        except Exception as error:
            reply = error_reply(error)
        self._reply(asked.mail, reply)

    def _fail(self, batch: ModelBatch, error: Exception) -> None:
        """An error that nobody foresaw, such as too little memory, or one of several models': each request is
        tried alone."""
        if len(batch.asked) == 1 or (isinstance(error, MPOError) and len(batch.digests) == 1):
            for asked in batch.asked:
                self._reply(asked.mail, error_reply(error))
        else:
            logger.warning("%d requests are tried one by one: %s", len(batch.asked), type(error).__name__)
            self._alone += [asked.mail for asked in batch.asked]

    def _let_go_of_what_nobody_awaits(self) -> None:
        now = time.time()
        # One after its deadline costs more than the look for it.
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + LOOK_SECONDS
        asked = [(batch, asked) for batch in self._batches.values() for asked in batch.asked]
        mails = [each.mail for _, each in asked] + [mail for mail, _ in self._new] + list(self._alone)
        if not mails:
            return
        late = [mail for mail in mails if mail.envelope.deadline < now]
        gone = {mail.entry_id for mail in (*late, *self._outbox.withdrawn(mails))}
        for batch in list(self._batches.values()):
            batch.leave([each for each in batch.asked if each.mail.entry_id in gone])
        self._batches = {key: batch for key, batch in self._batches.items() if batch.asked}
        self._new = deque(item for item in self._new if item[0].entry_id not in gone)
        self._alone = deque(mail for mail in self._alone if mail.entry_id not in gone)
        for mail in mails:
            if mail.entry_id in gone:
                self._outbox.drop(mail)

    def _reply(self, mail: Mail, reply: Reply) -> None:
        self._post.add(Letter(mail, reply))

    def _answer_now(self, request: ScoreRequest | TokenizeRequest | DetokenizeRequest) -> Reply:
        match request:
            case ScoreRequest():
                return self._score(request)
            case TokenizeRequest():
                return self._tokenize(request)
            case DetokenizeRequest():
                return self._detokenize(request)

    def _score(self, request: ScoreRequest) -> ScoreReply:
        held = self._cache.model(request.model, "reward_model", self._in_use)
        prompts, responses = encode_items(request, self._cache.tokenizer(request.model))
        rewards = [float(reward) for reward in score_responses(held.model, prompts, responses)]
        if not all(map(isfinite, rewards)):
            raise UnusableModel("The reward model's scores are not finite.")
        return ScoreReply(rewards=rewards)

    def _tokenize(self, request: TokenizeRequest) -> TokenizeReply:
        loaded = self._cache.tokenizer(request.model)
        if isinstance(request.text, str):
            found = loaded.tokenizer(request.text, add_special_tokens=request.add_special_tokens)
            token_ids: list[int] = found["input_ids"]
        else:
            token_ids = encode_prompt(contents(request.text), loaded.tokenizer, None)
        return TokenizeReply(token_ids=token_ids, tokens=[loaded.speller.token(i) for i in token_ids])

    def _detokenize(self, request: DetokenizeRequest) -> DetokenizeReply:
        loaded = self._cache.tokenizer(request.model)
        token_ids = check_ids(request.token_ids, loaded, param="token_ids")
        return DetokenizeReply(text=loaded.speller.text(token_ids))


def _sampled(asked: Asked) -> SampleReply:
    answering, request, prompts = asked.answering, asked.answering.request, asked.answering.prompts
    echoed: Sequence[list[TokenLogprobs | None] | None] = [None] * len(prompts)
    if request.echo and request.logprobs is not None:
        pad_id, token_ids = answering.loaded.terminators.pad_id, [prompt.token_ids for prompt in prompts]
        with asked.model.alone():
            echoed = prompt_logprobs(asked.model.model, token_ids, pad_id, request.logprobs)
    return answering.reply(echoed)
