"""What an evaluation's report holds, as `mpo.evaluation` writes it."""

from app.wire import View

Interval = tuple[float, float]


class Mean(View):
    """A mean over prompts, with the bootstrap's 95 % interval over prompts."""

    mean: float
    ci95: Interval


class Diversity(View):
    """Distinct words, and distinct pairs of words in a row, a word written; null where no word was.

    self_bleu: mean BLEU of a response against the model's others, 0 to 1: the lower, the more varied. Of at
    most 100 responses, drawn alike for every model. Null where fewer than two have words, and in reports of
    before it was told.
    """

    distinct_1: float | None
    distinct_2: float | None
    self_bleu: float | None = None


class EvaluatedModel(View):
    """reward: the judge's; training_reward: that of `reward_model`. kl: in nats a response, by base.

    eos_rate: share of the responses that ended by themselves.
    """

    model: str
    reward: Mean
    training_reward: Mean | None
    response_tokens: Mean
    eos_rate: float
    diversity: Diversity
    kl: dict[str, Mean]


class EvaluatedWinRate(View):
    """How often model_a's mean reward is the higher; a tie is half a win. ci95: Wilson's.

    length_controlled: the rate if both wrote equally much; null where that cannot be told. significant: the
    interval excludes one half.
    """

    model_a: str
    model_b: str
    wins: int
    losses: int
    ties: int
    win_rate: float
    ci95: Interval
    length_controlled: float | None
    n: int
    significant: bool


class Reliability(View):
    """Pairs of about one confidence, and how many of them the judge ranks as people did."""

    confidence: float
    accuracy: float
    pairs: int


class AccuracyByLength(View):
    """The judge's accuracy where the chosen response is longer by so many tokens."""

    tokens_from: float
    tokens_to: float
    accuracy: float
    pairs: int


class Calibration(View):
    """How far the judge's gaps are to be believed. ece: the expected calibration error."""

    ece: float
    reliability: list[Reliability]
    accuracy_by_length: list[AccuracyByLength]


class EvaluationJudge(View):
    """The judge on the dataset's pairs. accuracy_ci95: Wilson's."""

    name: str
    accuracy: float
    accuracy_ci95: Interval
    pairs: int
    calibration: Calibration


class ModelByGap(View):
    """A model's numbers over some of the prompts."""

    model: str
    reward: Mean
    kl: dict[str, Mean]


class ByGap(View):
    """Prompts whose pairs have about one |gap|. gap: the smallest and the largest."""

    n: int
    gap: Interval
    win_rates: list[EvaluatedWinRate]
    models: list[ModelByGap]


class SeenPrompts(View):
    """How many of the prompts, and the index of the first ten."""

    prompts: int
    first: list[int]


class SeenByModel(View):
    """Prompts in what a model was trained on; null where that is not known, or not there any more.

    equal: the whole prompt, but for case, marks and spaces. shared_13_grams: some 13 words in a row, in a
    prompt or a response.
    """

    model: str
    data: list[str] | None
    equal: SeenPrompts | None
    shared_13_grams: SeenPrompts | None


class Contamination(View):
    """shorter_than_13_words: prompts that can share no 13 words."""

    prompts: int
    shorter_than_13_words: int
    models: list[SeenByModel]


class EvaluationReport(View):
    """Models in the order of the request. contamination: null where no model's training data are known."""

    prompts: int
    samples: int
    judge: EvaluationJudge
    judge_independence: str
    note: str | None
    models: list[EvaluatedModel]
    win_rates: list[EvaluatedWinRate]
    by_gap: list[ByGap] | None
    contamination: Contamination | None
