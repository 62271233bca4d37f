"""The stage `ppo`: Proximal Policy Optimization against a reward model, on the difficult pairs' prompts."""

from transformers import PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.adapters import save_adapted
from mpo.checkpoints import handed_over
from mpo.config import PPOStage
from mpo.errors import EmptySplit, StageInterrupted
from mpo.model_tokens import refuse_other_ids
from mpo.packed_models import pack_where_exact
from mpo.policies import load_policy, load_reward_model, save_model, to_training_device
from mpo.ppo.adapted import POLICY, load_adapted_networks
from mpo.ppo.iteration import iterate
from mpo.ppo.networks import Critic, Networks, ValueHead, check_alike, trained_networks
from mpo.ppo.prompts import read_distinct_prompts
from mpo.ppo.state import PPOTraining, episode_counts, restore, save
from mpo.precision import set_precision
from mpo.ranks import ALONE, Ranks, any_of
from mpo.recomputation import recompute_layers
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.score import reward_offset
from mpo.summaries import write_summary
from mpo.tokenization import load_tokenizer, terminators


def train_ppo(task: StageTask, reporter: Reporter, ranks: Ranks = ALONE) -> None:
    """The stage `ppo`: roles policy, reference, reward_model and prompts -> model.

    The critic starts as a copy of the reward model, or as a head on the policy that says 0. A role `sft`,
    where there is one, adds the KL to that model to the metrics. Schulman et al. 2017 (arXiv 1707.06347),
    with the KL penalty of Ziegler et al. 2019 (arXiv 1909.08593). Raises EmptySplit, UnusableModel,
    NoChatTemplate, TrainingDiverged, StageInterrupted.
    """
    training = load_training(task, reporter, ranks)
    if task.resume:
        restore(training, task.resume)
    run(training, task, reporter)
    if ranks.number > 0:
        return
    _save_policy(training.networks.policy, task)
    write_summary(
        task.output,
        {
            "prompts": len(training.prompts),
            "episodes": training.episodes.start,
            "iterations": training.iteration,
            "optimizer_steps": training.optimizer_steps,
            "kl_coefficient": training.kl_coefficient,
            "stopped": training.stopped,
            "first": training.first,
            "last": training.last,
        },
    )


def load_training(task: StageTask, reporter: Reporter, ranks: Ranks = ALONE) -> PPOTraining:
    """The training before its first iteration."""
    config, source = task.config, task.one("policy").path
    assert isinstance(config, PPOStage)
    tokenizer = load_tokenizer(source)
    prompts = read_distinct_prompts(task.one("prompts").path, tokenizer, config.max_prompt_tokens, reporter)
    if not prompts:
        raise EmptySplit(
            "There is no prompt to train on: the role prompts holds none. Where it is a part of a split, "
            "another threshold, or easy_fraction in its place, fills it.",
            prompts=0,
        )
    refuse_other_ids(task, "policy", ("reference", "sft", "reward_model"))
    networks = load_networks(task, config)
    for network in networks.whole():
        set_precision(network, config.precision)
        pack_where_exact(network, reporter.warn)
        if config.gradient_checkpointing:
            recompute_layers(network, reporter.warn)
    return PPOTraining(
        config=config,
        seed=task.seed,
        networks=networks,
        prompts=prompts,
        terminators=terminators(source, tokenizer),
        counts=episode_counts(config, len(prompts)),
        trained=trained_networks(networks, config.learning_rate),
        kl_coefficient=config.kl_coefficient,
        ranks=ranks,
        tell=reporter.warn,
    )


def load_networks(task: StageTask, config: PPOStage) -> Networks:
    """The task's models, and the critic that the configuration asks for."""
    if config.lora is not None:
        networks = load_adapted_networks(task, config, config.lora)
        if config.ema_reference is not None:
            check_alike(networks.policy, networks.reference)
        return networks
    policy = _ready(load_policy(task.one("policy").path))
    # Not frozen, though nothing trains it: torch multiplies by frozen weights in another way, and where the
    # reference is the policy their KL would no longer be exactly 0.
    reference = _ready(load_policy(task.one("reference").path))
    if config.ema_reference is not None:
        check_alike(policy, reference)
    return Networks(
        policy=policy,
        reference=reference,
        critic=_critic(task, config, policy),
        reward_model=_frozen(load_reward_model(task.one("reward_model").path)),
        sft=_ready(load_policy(task.one("sft").path)) if "sft" in task.inputs else None,
    )


def _critic(task: StageTask, config: PPOStage, policy: PreTrainedModel) -> Critic | ValueHead:
    if config.critic == "shared_trunk":
        return ValueHead(policy.config.get_text_config().hidden_size).to(policy.device)
    network = _ready(load_reward_model(task.one("reward_model").path))
    return Critic(network, reward_offset(network))


def _save_policy(policy: PreTrainedModel | AdaptedModel, task: StageTask) -> None:
    source, target = task.one("policy").path, task.output / "model"
    if isinstance(policy, AdaptedModel):
        save_adapted(policy.base, POLICY, source, target)
    else:
        save_model(policy, source, target)


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    return to_training_device(model).eval()


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return _ready(model).requires_grad_(False)


def run(training: PPOTraining, task: StageTask, reporter: Reporter) -> None:
    """Takes the iterations that are left; reports each, and has rank 0 hand over checkpoints between them."""
    ranks, total = training.ranks, len(training.counts)
    while training.iteration < total and training.stopped is None:
        stopping = any(any_of(ranks, reporter.should_stop()))
        metrics = None if stopping else iterate(training, reporter.should_stop)
        if metrics is None:
            _hand_over(training, task, reporter)
            raise StageInterrupted(iteration=training.iteration)
        reporter.progress(training.iteration, total, metrics)
        if training.stopped is not None:
            reporter.warn(
                f"PPO stopped after {training.iteration} of {total} iterations: {training.stopped}."
            )
        elif training.iteration < total and any(any_of(ranks, reporter.checkpoint_due())):
            _hand_over(training, task, reporter)


def _hand_over(training: PPOTraining, task: StageTask, reporter: Reporter) -> None:
    if training.ranks.number > 0:
        return
    with handed_over(task, reporter, training.iteration) as folder:
        save(training, folder)
