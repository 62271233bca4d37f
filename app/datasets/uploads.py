"""Uploads: streamed to the store and digested as they come, before any transaction."""

import asyncio
import base64
import re
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from app.middleware import BodyTooLarge
from core.errors import ServiceError, Unprocessable
from core.ids import new_id
from core.settings import settings
from core.storage import CHUNK_BYTES, Storage
from core.stored_files import StoredFile

SHA_256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([^:]*):", re.IGNORECASE)


class DigestMismatch(ServiceError):
    """The content that came does not have the digest that Content-Digest names."""

    code, status, title = "digest_mismatch", 400, "Content does not match its digest"


class BadDigest(ServiceError):
    """Content-Digest should read sha-256=:<base64 of the 32 bytes>:"""

    code, status, title = "bad_content_digest", 400, "Malformed Content-Digest"


def media_type_of(header: str | None) -> str | None:
    """A media type without its parameters."""
    return (header or "").partition(";")[0].strip().lower()[:200] or None


def expected_digest(header: str | None) -> str | None:
    """The SHA-256, in hex, that a Content-Digest header names; other algorithms are passed over."""
    if header is None or "sha-256" not in header.lower():
        return None
    found = SHA_256.search(header)
    try:
        digest = base64.b64decode(found.group(1), validate=True) if found else b""
    except ValueError as error:
        raise BadDigest() from error
    if len(digest) != 32:
        raise BadDigest()
    return digest.hex()


async def store_upload(
    storage: Storage, chunks: AsyncIterable[bytes], expected: str | None = None
) -> StoredFile:
    """Write chunks to a file of their own; whatever breaks off leaves nothing.

    Raises DigestMismatch, BodyTooLarge, and what `chunks` raises when the client goes.
    """
    location = f"uploads/{new_id('request')}"
    limit = settings().max_upload_bytes
    writer = await run_in_threadpool(storage.upload, location)
    kept = False
    try:
        async for chunk in chunks:
            await run_in_threadpool(writer.write, chunk)
            if writer.bytes > limit:
                raise BodyTooLarge(f"A dataset may have {limit} bytes", max_bytes=limit)
        stored = await run_in_threadpool(writer.commit)
        if expected is not None and stored.sha256 != expected:
            await run_in_threadpool(storage.delete, location)
            raise DigestMismatch(sha256=stored.sha256)
        kept = True
        return stored
    finally:
        if not kept and storage.root_folder:
            writer.abort()
        elif not kept:
            # Not waited for, which a cancelled task could not; not here either: the store is far away.
            asyncio.get_running_loop().run_in_executor(None, writer.abort)


async def body_chunks(request: Request) -> AsyncIterator[bytes]:
    """A raw body in pieces of about a mebibyte: a thread's hop a piece, not a packet."""
    buffer = bytearray()
    async for packet in request.stream():
        buffer += packet
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


@asynccontextmanager
async def opened_form(request: Request) -> AsyncIterator[FormData]:
    """A form of one file and a few fields, its temporary file gone at the end. Raises Unprocessable."""
    try:
        form = await request.form(max_files=1, max_fields=10)
    except UnicodeError as error:
        # The media type may name any codec as its charset, and some fail in ways of their own.
        raise Unprocessable(
            "The form's fields should be text in UTF-8", loc=("header", "Content-Type")
        ) from error
    try:
        yield form
    finally:
        await form.close()


async def file_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    """A form's file in pieces."""
    while chunk := await file.read(CHUNK_BYTES):
        yield chunk
