"""Answers requests: renders prompts, samples and scores them together, spells what came out."""

from collections.abc import Sequence
from math import isfinite

from core.sampling import (
    DetokenizeReply,
    DetokenizeRequest,
    Reply,
    Request,
    SampleRequest,
    ScoreReply,
    ScoreRequest,
    TokenizeReply,
    TokenizeRequest,
)
from mpo.errors import MPOError, UnusableModel
from mpo.reward_model.score import score_responses
from mpo.tokenization import encode_prompt
from workers.sampling.batch import PreparedRequest, StillWanted, prepare, sample_together
from workers.sampling.model_cache import ModelCache
from workers.sampling.prompts import check_ids, contents, encode_items
from workers.sampling.refusals import error_reply


class Engine:
    """Answers groups of requests with the models of a cache; for one thread."""

    def __init__(self, cache: ModelCache) -> None:
        self._cache = cache

    def answer(self, requests: Sequence[Request], wanted: StillWanted) -> list[Reply | None]:
        """A reply to each request of one group, in order; None where it is wanted no more.

        A group's requests are alike by `workers.sampling.grouping.group_key`.
        """
        samples = [request for request in requests if isinstance(request, SampleRequest)]
        if samples:
            return self._sample_group(samples, wanted)
        return [self._answer_one(request) for request in requests]

    def _answer_one(self, request: Request) -> Reply:
        try:
            match request:
                case ScoreRequest():
                    return self._score(request)
                case TokenizeRequest():
                    return self._tokenize(request)
                case DetokenizeRequest():
                    return self._detokenize(request)
            raise AssertionError(request.op)
        except Exception as error:
            return error_reply(error)  # a border: no request may end the process

    def _score(self, request: ScoreRequest) -> ScoreReply:
        model = self._cache.model(request.model, "reward_model")
        prompts, responses = encode_items(request, self._cache.tokenizer(request.model))
        rewards = [float(reward) for reward in score_responses(model, prompts, responses)]
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

    def _sample_group(self, requests: list[SampleRequest], wanted: StillWanted) -> list[Reply | None]:
        replies: list[Reply | None] = [None] * len(requests)
        prepared: list[PreparedRequest] = []
        for number, request in enumerate(requests):
            try:
                self._cache.model(request.model, "policy")
                prepared.append(prepare(number, request, self._cache.tokenizer(request.model)))
            except Exception as error:
                replies[number] = error_reply(error)  # one request's fault is not the others'
        for number, reply in self._sample_prepared(prepared, wanted).items():
            replies[number] = reply
        return replies

    def _sample_prepared(self, prepared: Sequence[PreparedRequest], wanted: StillWanted) -> dict[int, Reply]:
        if not prepared:
            return {}
        files = prepared[0].request.model
        try:
            model, loaded = self._cache.model(files, "policy"), self._cache.tokenizer(files)
            return dict(sample_together(model, loaded, prepared, wanted))
        except Exception as error:
            if len(prepared) == 1 or isinstance(error, MPOError):
                return {item.number: error_reply(error) for item in prepared}
        # Something that nobody foresaw, such as too little memory: each request alone.
        alone: dict[int, Reply] = {}
        for item in prepared:
            alone |= self._sample_prepared([item], wanted)
        return alone
