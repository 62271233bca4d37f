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
)
