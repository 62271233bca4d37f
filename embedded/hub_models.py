"""Models of the Hugging Face hub: safetensors and tokenizer, never pickles, never code."""

from pathlib import Path
from typing import Any

from embedded.errors import ModelNotAdded

PREFIX = "hf:"
TAKEN = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "chat_template*",
    "LICENSE*",
    "README.md",
)
PASSED_OVER = ("*/*", "consolidated*", "*.py", "*.bin", "*.pt", "*.pth", "*.pkl")
"""Subfolders hold other formats, `consolidated` the same weights under other names."""


def split_name(source: str) -> tuple[str, str | None]:
    """`hf:NAME[@REVISION]` as name and revision."""
    name, _, revision = source.removeprefix(PREFIX).partition("@")
    return name, revision or None


def download(source: str, target: Path, *, endpoint: str | None = None) -> str:
    """Fetches the newest commit, or the revision asked for, into a folder; returns the commit's hash.

    endpoint: the hub's address; by default HF_ENDPOINT, or else huggingface.co.
    Raises ModelNotAdded.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ModelNotAdded("this needs the package huggingface-hub: pip install huggingface-hub") from error
    name, revision = split_name(source)
    wanted: dict[str, Any] = {
        "allow_patterns": list(TAKEN),
        "ignore_patterns": list(PASSED_OVER),
        "endpoint": endpoint,
        "local_dir": target,
    }
    # What the hub answers is an error of its HTTP library, whose name differs by version; the rest, OSError.
    refused: Any = (*HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        # The list first: gigabytes are not fetched to find that there are no weights among them.
        files = snapshot_download(name, revision=revision, dry_run=True, **wanted)
        if not any(file.filename.endswith(".safetensors") for file in files):
            raise ModelNotAdded(f"{name} has no safetensors, and pickled weights are never loaded")
        commit = files[0].commit_hash
        snapshot_download(name, revision=commit, **wanted)
    except refused as error:
        raise ModelNotAdded(_why(error, name, revision)) from error
    return str(commit)


def _why(error: BaseException, name: str, revision: str | None) -> str:
    """One line. The hub tells a private model from none to nobody, and gated ones by another error."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.DryRunError | hub.LocalEntryNotFoundError):
        error = error.__cause__ or error
    if isinstance(error, hub.GatedRepoError):
        return f"{name} is gated: accept its terms on the hub, then log in with: hf auth login"
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"the hub has no model {name}, or it is private"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"{name} has no revision {revision}"
    if isinstance(error, hub.HFValidationError):
        return f"{name!r} is no name of a model: write hf:OWNER/NAME[@REVISION]"
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "the hub is switched off by HF_HUB_OFFLINE"
    return f"the hub cannot be reached: {' '.join(str(error).split())[:200] or type(error).__name__}"
