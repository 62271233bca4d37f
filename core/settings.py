"""Deployment settings: the one reader of the environment."""

import os
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once per process (`settings()`), then passed on. Every variable is `MPO_` + the field's name."""

    model_config = SettingsConfigDict(env_prefix="MPO_", extra="ignore", frozen=True)

    database_url: SecretStr = Field(
        description="SQLAlchemy URL of Postgres, driver psycopg: postgresql+psycopg://user:password@host/name"
    )
    redis_url: SecretStr = Field(description="Redis protocol: redis://host:port/0 or unix:///path?db=0")
    store_url: str = Field(
        description="fsspec URL of the artifact store: file:///folder or s3://bucket/prefix"
    )
    models: str = Field(
        "", description="Model folders to register as base models, separated by the path separator."
    )
    model_roots: str = Field(
        "",
        description="Folders below which admins may register models over HTTP, separated likewise. "
        "Unset = the parents of MPO_MODELS.",
    )
    admin_key: SecretStr | None = Field(
        None, description="First admin key, made known to the database by `python -m core.bootstrap`."
    )
    scratch: Path | None = Field(
        None, description="Folder for a worker's temporary files; the system's when unset."
    )

    token_cache_bytes: NonNegativeInt = Field(
        4 << 30,
        description="Disk that a machine's stages may take below MPO_SCRATCH for token ids that they share, "
        "in bytes, and at most half of what it has free: what was not read for the longest goes first. "
        "0 = each stage makes its own.",
    )

    log_format: Literal["json", "text"] = Field(
        "json", description="Log lines: one JSON object each, or text for people."
    )

    metrics_folder: Path | None = Field(
        None,
        validation_alias="PROMETHEUS_MULTIPROC_DIR",
        description="Folder in which the API processes of one port add up their figures, empty at their "
        "start. Has the name that Prometheus's client reads.",
    )

    max_open_jobs: PositiveInt = Field(10_000, description="Unfinished jobs a key may have.")
    max_upload_bytes: PositiveInt = Field(64 << 30, description="Largest accepted upload, in bytes.")

    lease_seconds: PositiveFloat = Field(15.0, description="A claim not renewed this long is over.")
    renew_seconds: PositiveFloat = Field(3.0, description="Time between two renewals of a lease.")
    look_seconds: PositiveFloat = Field(5.0, description="A worker looks for work this often unasked.")
    recovery_seconds: PositiveFloat = Field(3.0, description="Time between two recovery passes.")
    sweep_seconds: PositiveFloat = Field(300.0, description="Time between two steps of the sweep.")
    sweep_grace_seconds: NonNegativeFloat = Field(
        3600.0, description="What nothing names any more is freed after this long."
    )
    keep_unreferenced_seconds: NonNegativeFloat = Field(
        7 * 86400.0,
        description="Results that no job refers to, and checkpoints of runs that have failed or been "
        "cancelled, serve as a cache for this long.",
    )
    sampler_wait_seconds: PositiveFloat = Field(
        120.0, description="Longest wait for the sampler's answer to one request."
    )
    sampler_patience_seconds: PositiveFloat = Field(
        600.0, description="A comparison waits this long for a sampler that is away, then it fails."
    )
    sampler_memory_bytes: NonNegativeInt = Field(
        4 << 30, description="Memory the sampler may spend on loaded models."
    )
    sampler_pinned_models: tuple[str, ...] = Field(
        (), description="Names of models that the sampler keeps once it has loaded them, as a JSON list."
    )
    sampler_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the time for which the sampler computes while a training uses its machine; "
        "1 = all of it. It sees the trainings of workers that have the same MPO_SCRATCH.",
    )
    training_memory_bytes: NonNegativeInt = Field(
        0,
        description="Memory that a training may take, of the machine or of each GPU, in bytes: a job that is "
        "estimated to need more is refused. 0 = not known, and nothing is refused.",
    )
    training_device: Literal["cpu", "cuda"] = Field(
        "cpu", description="What trainings run on, for estimates: workers take a GPU where they see one."
    )
    judge_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts (each alone or with :port), as a JSON list, that comparisons may ask as judges "
        "though they are in a private network.",
    )
    judge_keys: dict[str, SecretStr] = Field(
        {}, description="API keys of judges by their host, as a JSON object."
    )
    torch_threads: NonNegativeInt = Field(
        0,
        description="CPU threads of a training child; 0 = torch's choice. Models of at most two million "
        "parameters take one.",
    )
    worker_niceness: NonNegativeInt = Field(
        8,
        le=15,
        description="By how many steps of niceness workers leave the processor to the API and what else is "
        "on their machine; their children do by four more. 0 where nothing is to be put before them.",
    )
    ranks: PositiveInt = Field(
        1,
        description="Processes that train together in a run of a gpu worker, which then takes one run at a "
        "time: as many as it has GPUs. They share MPO_TORCH_THREADS. The API estimates by it as well.",
    )
    sharded: bool = Field(
        False,
        description="Whether each of MPO_RANKS holds a part of the weights that it trains, and of the "
        "optimizer's state, in place of all (SFT, reward models and DPO without lora). For the API as well.",
    )

    @property
    def scratch_or_temporary(self) -> Path:
        """Where processes of this machine keep what they fetch and make, and see one another."""
        return self.scratch or Path(gettempdir())

    @property
    def broker_url(self) -> str:
        """The same server as `redis_url`, spelt as Celery wants it."""
        url = self.redis_url.get_secret_value()
        if url.startswith("unix://"):
            path, _, query = url.removeprefix("unix://").partition("?")
            database = query.removeprefix("db=") or "0"
            return f"redis+socket://{path}?virtual_host={database}"
        return url

    @property
    def model_folders(self) -> list[Path]:
        """The folders named by `MPO_MODELS`, in order."""
        return [Path(part) for part in self.models.split(os.pathsep) if part]

    @property
    def allowed_model_roots(self) -> list[Path]:
        """The folders below which a model may be registered over HTTP."""
        named = [Path(part) for part in self.model_roots.split(os.pathsep) if part]
        return named or [folder.absolute().parent for folder in self.model_folders]


@cache
def settings() -> Settings:
    """This process's settings, read from the environment at the first call.

    Raises pydantic's ValidationError, naming each missing or wrong variable.
    """
    return Settings()


def withhold_credentials() -> None:
    """Read the settings, then take the database's out of the environment that child processes inherit."""
    settings()
    os.environ["MPO_DATABASE_URL"] = "postgresql+psycopg://withheld"
    os.environ.pop("MPO_ADMIN_KEY", None)
