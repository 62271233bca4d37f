"""The largest pass through a network that a stage makes, and what it keeps in memory. Torch-free.

Of packed rows what is kept was counted in a Llama, tensor by tensor (`tests/mpo/test_estimates_memory.py`);
other models keep more or less.
"""

from dataclasses import dataclass

from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, SFTStage
from mpo.estimates_shape import ModelShape
from mpo.estimates_work import Longest
from mpo.training_config import TrainingConfig

Device = str
"""cpu or cuda, as torch calls kinds of devices."""

PACKED_TOKENS = {"cpu": 2**11, "cuda": 2**14}
"""As `mpo/packed_rows.py: TOKENS_AT_ONCE`."""

PPO_TOKENS = {"cpu": 2**12, "cuda": 2**14}
"""As `mpo/ppo/rollouts.py: TOKENS_AT_ONCE`."""

LOGITS_AT_ONCE, ROWS_AT_ONCE = 2**28, 32
"""As `mpo/batches.py: rows_at_once`."""

REWARD_TOKENS_AT_ONCE = 2**13
"""As `mpo/reward_model/objective.py`, of padded rows."""

TRL_ROWS_AT_ONCE = 32
"""As `mpo/trl_engine.py: MICRO_BATCH_ROWS`."""

QUERIES_A_BLOCK, MEAN_KEYS = 96, 256
"""As `mpo/blocked_attention.py: QUERIES, MEAN_KEYS`."""

LOGITS_TRAINED = 3
"""Copies of the logits at the peak of a backward pass: log-softmax, the gradient of it, and theirs."""

LOGITS_READ = 2
"""Copies of the logits at the peak of a pass without gradients."""


@dataclass(frozen=True)
class Pass:
    """A forward pass that keeps what its backward pass needs.

    tokens: of all rows, padding included. read: places where the last layer is needed. repeated: tokens whose
    keys and values are copied for a second response. logits: places that the head is run at. masked: numbers
    of the masks a layer, of responses that see another's prompt. seen: keys of each query's
    block, summed over the queries of packed rows. seen_at_end, masked_at_end: the same of the last
    layer.
    """

    tokens: float
    read: float
    repeated: float = 0.0
    logits: float = 0.0
    masked: float = 0.0
    seen: float = 0.0
    seen_at_end: float = 0.0
    masked_at_end: float = 0.0

    def attends_by_blocks(self, device: Device) -> bool:
        """As `mpo/blocked_attention.py: takes_blocks`, in fp32."""
        return device == "cpu" and 0 < self.seen <= MEAN_KEYS * self.tokens


def is_in_bf16(config: TrainingConfig, device: Device) -> bool:
    """Whether passes are in bf16, as `mpo/precision.py` has it; a GPU is taken to multiply it."""
    return config.precision == "bf16" or (config.precision == "auto" and device == "cuda")


def kept_numbers(a_pass: Pass, shape: ModelShape, config: TrainingConfig, device: Device = "cpu") -> float:
    """Numbers, of fp32, in memory at the peak of a training pass, but for weights, gradients and logits.

    In bf16 packed rows keep half of nearly all, and the layers' matrices once more. What padded rows and TRL
    keep was not counted: it is taken to be as much as in fp32.
    """
    tokens, apart = a_pass.tokens, a_pass.tokens - a_pass.read
    bf16 = is_in_bf16(config, device)
    halved = bf16 and shape.packs and getattr(config, "engine", "native") == "native"
    a_number = 0.5 if halved else 1.0
    if not bf16 and a_pass.attends_by_blocks(device):
        layer = tokens * shape.kept_a_layer_by_blocks() + shape.heads * a_pass.seen
    else:
        layer = tokens * (shape.kept_a_layer_in_bf16() if halved else shape.kept_a_layer())
        layer += a_number * (2 * shape.attended * a_pass.repeated + a_pass.masked)
    if config.lora is not None:
        layer += tokens * config.lora.rank * len(shape.adapted(config.lora)) / shape.layers
    last = layer - a_number * (4 * shape.inner + shape.width) * apart
    if apart and device == "cpu":
        # Queries and what comes of them are of the places that are read, whose states are put together, and
        # both parts' results where they are spread again.
        last -= a_number * (2 * shape.attended * apart - 3 * shape.width * a_pass.read)
        if not bf16 and a_pass.attends_by_blocks(device):
            last -= shape.heads * (a_pass.seen - a_pass.seen_at_end)
        else:
            last -= a_number * (a_pass.masked - a_pass.masked_at_end)
    if bf16:
        layer, last = layer + shape.cast_a_layer(), last + shape.cast_a_layer()
    ends = tokens * (shape.width + 2 * shape.attended / shape.heads)  # the last norm, and rotary positions
    if config.gradient_checkpointing:
        # Beside all layers' inputs stand the last one's numbers, or those of the one that is recomputed.
        held = (shape.layers - 1) * tokens * shape.width + (layer if shape.layers > 1 else last)
    else:
        held = (shape.layers - 1) * layer + last
    if isinstance(config, PPOStage) and config.critic == "shared_trunk":
        held += shape.layers * tokens * shape.width  # all hidden states are asked for
    return held + ends


def training_pass(
    config: TrainingConfig, shape: ModelShape, longest: Longest, device: Device, ranks: int = 1
) -> Pass:
    """The largest pass of a stage that trains, on one of its ranks: each takes a share of a step's rows."""
    if isinstance(config, PPOStage):
        return _ppo_pass(config, shape, longest, device, ranks)
    config = config.model_copy(update={"batch_pairs": -(-config.batch_pairs // ranks)})
    if getattr(config, "engine", "native") == "trl":
        return _padded(config, shape, longest, TRL_ROWS_AT_ONCE)
    if not shape.packs:
        return _padded(config, shape, longest, ROWS_AT_ONCE)
    return _packed(config, shape, longest, device)


def _packed(config: TrainingConfig, shape: ModelShape, longest: Longest, device: Device) -> Pass:
    """Rows one after another, each prompt once; a pass holds one row at least."""
    long = longest.long
    single = isinstance(config, SFTStage)
    a_row = long.prompt + long.chosen + (0 if single else long.rejected)
    numbers = 1 if isinstance(config, RewardModelStage) else shape.vocabulary
    at_once = max(1, min(PACKED_TOKENS[device], LOGITS_AT_ONCE // numbers))
    largest = longest.row if single else longest.prompt + 2 * longest.response
    tokens = max(min(config.batch_pairs * a_row, float(at_once)), float(largest))
    rows = tokens / max(1.0, a_row)
    responses = rows * (a_row - long.prompt)
    seen = rows * seen_keys(long.prompt + long.chosen)
    at_end = rows * seen_keys(long.chosen, long.prompt)
    of_first = rows * long.chosen * (long.prompt + long.chosen)
    if single:
        return Pass(
            tokens, responses, logits=responses, seen=seen, seen_at_end=at_end, masked_at_end=of_first
        )
    of_second = rows * seen_keys(long.rejected, long.prompt)
    seen += of_second
    again = rows * (long.prompt + long.rejected)
    masked = rows * long.rejected * (long.prompt + long.rejected)
    if isinstance(config, RewardModelStage):
        at_end = rows * (2 * long.prompt + long.chosen + long.rejected)
        return Pass(tokens, 2 * rows, again, masked=masked, seen=seen, seen_at_end=at_end)
    return Pass(tokens, responses, again, responses, masked, seen, at_end + of_second, of_first + masked)


def seen_keys(queries: float, prompt: float = 0.0) -> float:
    """Keys that the blocks of a sequence's queries see, summed over these. prompt: tokens that all see."""
    blocks = max(1, round(queries / QUERIES_A_BLOCK))
    return queries * (prompt + (queries + queries / blocks) / 2)


def _padded(config: TrainingConfig, shape: ModelShape, longest: Longest, most: int) -> Pass:
    """Both rows of each pair, all as long as the longest. The head runs everywhere."""
    by_logits = max(1, min(most, LOGITS_AT_ONCE // max(1, longest.row * shape.vocabulary)))
    if isinstance(config, SFTStage):
        rows = min(config.batch_pairs, by_logits)
    elif isinstance(config, RewardModelStage):
        by_tokens = max(1, REWARD_TOKENS_AT_ONCE // (2 * max(1, longest.row)))
        trl = config.engine == "trl"
        rows = 2 * min(config.batch_pairs, most if trl else min(most, by_tokens))
    else:
        trl = isinstance(config, DPOStage) and config.engine == "trl"
        rows = 2 * min(config.batch_pairs, most if trl else max(1, by_logits // 2))
    tokens = float(rows * longest.row)
    logits = 0.0 if isinstance(config, RewardModelStage) else tokens
    return Pass(tokens, tokens, logits=logits)


def _ppo_pass(config: PPOStage, shape: ModelShape, longest: Longest, device: Device, ranks: int) -> Pass:
    """A rank's share of a micro-batch: of the rows of a step, evenly, as many as a pass may hold."""
    episodes = min(config.rollout_prompts, config.episodes or config.rollout_prompts)
    a_step = -(-episodes // min(config.mini_batches, episodes))
    a_row = longest.long.prompt + longest.response if shape.packs else longest.row
    of_logits = LOGITS_AT_ONCE // shape.vocabulary // max(1, longest.response)
    at_once = max(1, min(int(PPO_TOKENS[device] // max(1, a_row)), of_logits))
    together = -(-a_step // -(-a_step // at_once))
    rows = -(-together // ranks)
    responses = float(rows * longest.response)
    tokens = float(rows * a_row)
    if not shape.packs:
        return Pass(tokens, tokens, logits=responses)
    at_end = rows * seen_keys(longest.response, longest.long.prompt)
    return Pass(
        tokens,
        responses,
        logits=responses,
        seen=rows * seen_keys(a_row),
        seen_at_end=at_end,
        masked_at_end=responses * (longest.long.prompt + longest.response),
    )


def trained_numbers(
    config: TrainingConfig, shape: ModelShape, longest: Longest, device: Device, ranks: int = 1
) -> float:
    """Numbers in memory at the peak of the largest training pass, weights and gradients left out."""
    a_pass = training_pass(config, shape, longest, device, ranks)
    copies, head = float(LOGITS_TRAINED), 0.0
    if is_in_bf16(config, device) and a_pass.logits:
        copies, head = copies + 0.5, shape.vocabulary * shape.width / 2
    logits = copies * a_pass.logits * shape.vocabulary
    # The logits' gradients are gone before a layer's are computed, so that only the larger of both counts.
    passing = a_pass.tokens * (3 * shape.inner + 3 * shape.width)
    return kept_numbers(a_pass, shape, config, device) + head + max(logits, passing)


def read_numbers(config: TrainingConfig, shape: ModelShape, longest: Longest, device: Device) -> float:
    """Numbers of the largest pass without gradients, of a stage that trains nothing: fp32's also in bf16,
    which holds a matrix that was cast beside fewer numbers of the pass."""
    if shape.packs:
        tokens = float(max(PACKED_TOKENS[device], longest.prompt + 2 * longest.response))
    else:
        tokens = float(ROWS_AT_ONCE * longest.row)
    passing = tokens * shape.passing_a_token()
    if not isinstance(config, EvaluateStage):
        return passing
    rows = max(1, min(ROWS_AT_ONCE, LOGITS_AT_ONCE // max(1, longest.row * shape.vocabulary)))
    return max(passing, float(2 * LOGITS_READ * rows * longest.response * shape.vocabulary))
