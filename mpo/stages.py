"""Which function runs a stage. Each is imported where it is called: some stages never need torch."""

from mpo.heap import keep_freed_memory
from mpo.ranks import ALONE, Ranks
from mpo.reporter import Reporter, StageTask
from mpo.short_memory import is_short, out_of_memory


def run_stage(task: StageTask, reporter: Reporter, ranks: Ranks = ALONE) -> None:
    """Runs one stage to its end: its outputs and summary.json are in task.output afterwards.

    ranks: every one of them calls this with the same task, and rank 0 alone writes; of stages that are not
    spread (`mpo.spreading.is_spread`) there is only one.

    Seeds, determinism and what becomes of freed memory are set for the whole process. Raises mpo.errors.*,
    of which OutOfMemory is whatever said that memory was short.
    """
    if task.config.slot == "gpu":
        fix_randomness(task.seed)
        keep_freed_memory()
    try:
        _run(task, reporter, ranks)
    except Exception as error:
        if not is_short(error):
            raise
        raise out_of_memory(task) from error


def _run(task: StageTask, reporter: Reporter, ranks: Ranks) -> None:
    match task.config.kind:
        case "hold_out":
            from mpo.hold_out import hold_out_groups

            hold_out_groups(task, reporter)
        case "split":
            from mpo.split import split_by_gap

            split_by_gap(task, reporter)
        case "sft":
            from mpo.sft.train import train_sft

            train_sft(task, reporter, ranks)
        case "reward_model":
            from mpo.reward_model.train import train_reward_model

            train_reward_model(task, reporter, ranks)
        case "score":
            from mpo.reward_model.score import score_pairs

            score_pairs(task, reporter)
        case "dpo":
            from mpo.dpo.train import train_dpo

            train_dpo(task, reporter, ranks)
        case "ppo":
            from mpo.ppo.train import train_ppo

            train_ppo(task, reporter, ranks)
        case "evaluate":
            from mpo.evaluation import evaluate

            evaluate(task, reporter)


def fix_randomness(seed: int) -> None:
    """Every draw follows from the seed, and every kernel that has a deterministic form takes it."""
    import torch
    from transformers import set_seed

    set_seed(seed)
    # A warning, not an error: some kernels of a GPU have no deterministic form, and the stage must go on.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory that is written right after costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
