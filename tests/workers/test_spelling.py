"""Tokens as text and as bytes: a byte-level vocabulary, and SentencePiece's with bytes to fall back on."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.mpo.tiny import BOS, EOS, train_tokenizer
from workers.sampling.spelling import Speller

TEXT = "né 日本 \U0001f600!"


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    return train_tokenizer(["red cat", "blue dog"])


@pytest.fixture(scope="module")
def with_fallback() -> PreTrainedTokenizerFast:
    names = ["<unk>", "n", "é", "\ufffd", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("kind", ["byte_level", "with_fallback"])
def test_the_bytes_of_tokens_are_those_of_their_text(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    speller, ids = Speller(tokenizer), tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    apart = [speller.token_bytes(token_id) for token_id in ids]
    assert b"".join(apart) == TEXT.encode()
    assert "日".encode()[:1] in apart
    assert all(
        speller.token(id_).encode() == own for id_, own in zip(ids, apart, strict=True) if _is_text(own)
    )


def test_a_token_that_is_the_replacement_character_is_no_piece(
    with_fallback: PreTrainedTokenizerFast,
) -> None:
    speller = Speller(with_fallback)
    assert speller.token_bytes(with_fallback.convert_tokens_to_ids("\ufffd")) == "\ufffd".encode()


def test_tokens_that_share_a_character_begin_at_it_and_end_behind_it(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    speller, ids = Speller(byte_level), byte_level("n日!", add_special_tokens=False)["input_ids"]
    assert speller.spans([BOS, *ids, EOS]) == [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2), (2, 3), (3, 3)]


def _is_text(own: bytes) -> bool:
    try:
        own.decode()
    except UnicodeDecodeError:
        return False
    return True
