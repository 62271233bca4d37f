"""Promises whose proof is a test: which one, and what it shows. No figures: those are of a run."""

_FAULTS = "`tests/end_to_end/test_faults.py`: "

SHOWN_BY_TESTS: tuple[tuple[str, str], ...] = (
    (
        "a crash changes no result",
        _FAULTS
        + "DPO and PPO killed three times each, each time after a new checkpoint: `model.safetensors` "
        "is that of the uninterrupted run, bit for bit",
    ),
    (
        "a late worker changes nothing",
        _FAULTS
        + "a worker frozen past its lease while another does its run, then continued: one publication, "
        "and the sweep takes the late files",
    ),
    (
        "a poison run does not block the queue",
        _FAULTS + "a stage whose child always dies fails at its third crash; the job behind it succeeds",
    ),
    (
        "short work does not wait for long work",
        _FAULTS + "an upload becomes ready and a comparison ends during one and the same attempt of PPO",
    ),
    (
        "the database may be away for 60 s",
        _FAULTS + "Postgres frozen, and stopped, in mid-training, for 60 s with `TORMENT=long`: 503 with "
        "Retry-After meanwhile, one attempt, no step missing or repeated",
    ),
    (
        "nobody waits for a sampler that has died",
        "`tests/end_to_end/test_sampler_faults.py`: samplers killed again and again, and Valkey wiped, in "
        "mid-stream: the stream ends with an error and the other request with 503 within 10 s, nothing is "
        "left; `tests/app/openai_sdk/test_taken_over.py`: another sampler goes on with the same text",
    ),
    (
        "no sequence of steps, deaths and races breaks the protocol",
        "`tests/protocol/test_model.py`: 2,000 random sequences with `MPO_SEQUENCES=2000`; what it finds: "
        "`tests/protocol/test_planted_faults.py`",
    ),
    (
        "two jobs that share a stage do not disturb each other",
        "`tests/protocol/test_shared_stages.py`: one is changed at each state of the stage, the other "
        "ends as if alone",
    ),
    (
        "no job hangs between stages",
        "`tests/protocol/test_same_instant.py`: both inputs published at once, 1,000 times with "
        "`MPO_ROUNDS=1000`: enqueued once",
    ),
    (
        "no duplicate by retry",
        "`tests/app/test_idempotency.py`: 50 identical submissions at once, one job; a server that is killed "
        "leaves neither key nor job",
    ),
    (
        "a graceful stop counts as nothing; a cancelled child is gone",
        "`tests/workers/test_worker_process.py`, `tests/workers/test_child.py`",
    ),
    (
        "a full, read-only or failing store is a clear failure",
        "`tests/app/datasets/test_store_failures.py`, `tests/workers/test_stores.py`",
    ),
)
