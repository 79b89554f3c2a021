"""The processes of a run beside rank 0: they make the steps, and leave the store to rank 0.

They are given what they need by rank 0, from the weights to the folder of the tokens, so nothing is
downloaded twice. Where rank 0 is gone, one of them commits the last whole step: see `rescue`.
"""

import logging
from dataclasses import dataclass, replace

from torch import Tensor

from app.data.data_dir import DataDir
from app.data.followed_tokens import FollowedTokens
from app.data.sample_order import BatchGeometry
from app.data.token_progress import TokenProgress
from app.data.token_stream import TokenStream
from app.data.tokenizer import read_tokenizer
from app.errors import EXIT_OK, Damaged, LostPeer, Preempted
from app.model.smollm2 import SmolLM2
from app.ranks.checksum import DifferentWeights
from app.ranks.meeting import NodeEnded
from app.ranks.team import Team
from app.settings.combined import Settings
from app.settings.recipes import with_fitting_batch, with_recipe
from app.state.snapshot import make_moments
from app.stores.opening import open_store
from app.training.agreement import Agreement
from app.training.compute import Compute, resolve_compute, take_device
from app.training.flight import keep_flight_record
from app.training.groundwork import Groundwork
from app.training.loop import train_until_stopped, trainer_named
from app.training.nodes import come_to_nodes
from app.training.optimizer import build_optimizer
from app.training.out_of_memory import memory_failures
from app.training.plan import NOTHING_TO_DO, Plan, check_settings, share_state
from app.training.preemption import GracePeriod, StopRequest
from app.training.profiling import StepProfiler, TraceKeeper
from app.training.rescue import Remains, rescue
from app.training.schedule import Schedule
from app.training.step_clock import StepClock
from app.training.steps import Sections, Steps, Trainer

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Follower(Steps):
    """The steps of a process that is not rank 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._norm: Tensor | None = None  # of the gradient of the last finished step

    def step_done(self, loss: Tensor, grad_norm: Tensor) -> bool:
        """See `Steps`."""
        self._account(loss, grad_norm)
        last = self.step == self.target
        self._norm = grad_norm.detach().clone()
        if self._evaluates():
            evaluated = self.evaluate()
            self.validation_loss = self.validation_loss if evaluated is None else evaluated
        if last or self._every(self.sections.checkpoints.checkpoint_every_steps):
            self.check_same_weights()
        self._next_step()
        return self.agreement.stopping or last

    def remains(self) -> Remains | None:
        """What the last whole step left; None where nothing may be saved."""
        if self._moving or self._norm is None or not bool(self._finite):
            return None
        return Remains(
            step=self.step,
            model=self.model,
            optimizer=self.optimizer,
            train_loss=self.train_loss,
            grad_norm=float(self._norm),
            validation_loss=self.validation_loss,
        )


def follow(settings: Settings, stop: StopRequest) -> None:
    """Make the run's steps with the others. Returns once rank 0 has committed the last one.

    How the run ends, and whether it was stopped, is for rank 0 to say.
    """
    trainer = trainer_named(settings.run.trainer)
    team = Team(settings.place, settings.processes.peer_timeout)
    try:
        if team.place.leads_node:
            with come_to_nodes(settings, team) as ground:
                if ground is not None:
                    _follow(settings, team, stop, trainer, ground)
        else:
            _follow(settings, team, stop, trainer)
    except NodeEnded as end:
        if end.exit_code != EXIT_OK:
            raise


def _follow(
    settings: Settings,
    team: Team,
    stop: StopRequest,
    trainer: Trainer,
    ground: Groundwork | None = None,
) -> None:
    """`ground` is what the first process of a node brings for its neighbours."""
    with memory_failures(settings):
        take_device(settings)
        compute = resolve_compute(settings.compute)
        team.join(compute.device)
        content = team.document()
        if content == NOTHING_TO_DO:
            return
        plan = Plan.model_validate_json(content).on_node(team.place.node)
        settings = _as_decided(plan, replace(settings, place=team.place))
        check_settings(plan, settings, team.rank)
        follower = _follower(plan, settings, team, stop, ground)
    failure = train_until_stopped(trainer, follower, settings)
    follower.profiler.close(lambda: failure is None and follower.grace.fits(0))
    try:
        if failure is None:
            follower.check_same_weights()
            reached = follower.agreement.wait_for_the_commit()
            if not reached and team.place.nodes > 1:
                raise Preempted  # the launcher of this node hears nothing of rank 0
    except (LostPeer, DifferentWeights) as difference:
        failure = difference
    if isinstance(failure, LostPeer):
        if (remains := follower.remains()) is not None:
            rescue(remains, plan, settings, follower.compute, stop)
        place = settings.checkpoints.checkpoint_uri, plan.record.run_name
        keep_flight_record(lambda: open_store(*place), plan.epoch, team.rank)
    if failure is not None:
        raise failure


def _as_decided(plan: Plan, settings: Settings) -> Settings:
    """`settings` with the model's own defaults, as rank 0 has laid them under what the user set."""
    identity = plan.record.identity
    if identity.init_from is None:
        settings = with_recipe(settings, identity.model)
    if plan.settings["VAL_EVERY_STEPS"] == "0" and settings.is_default("VAL_EVERY_STEPS"):
        data = settings.data.model_copy(update={"val_every_steps": 0})  # too little text for it
        settings = replace(settings, data=data)
    return with_fitting_batch(settings)


def _follower(
    plan: Plan, settings: Settings, team: Team, stop: StopRequest, ground: Groundwork | None
) -> Follower:
    config = plan.record.identity.config
    if config is None:
        raise Damaged("run.json has no shape of a model")
    compute = resolve_compute(settings.compute)
    model = SmolLM2.empty(
        config, compute.device, gradient_checkpointing=settings.compute.gradient_checkpointing
    )
    optimizer = build_optimizer(model, settings.optimizer, compute.device)
    if plan.resumed:
        make_moments(model, optimizer)
    share_state(team, plan, model, optimizer)
    plan.random.restore()
    tokenizer = read_tokenizer(plan.tokenizer, "the tokenizer of rank 0")
    geometry = BatchGeometry(
        settings.batch.batch_size,
        settings.batch.global_batch_size,
        plan.seq_len,
        team.size,
        team.rank,
    )
    agreement = Agreement(team, stop)
    return Follower(
        sections=Sections(settings.data, settings.optimizer, settings.checkpoints, settings.logs),
        compute=compute,
        geometry=geometry,
        model=model,
        optimizer=optimizer,
        schedule=Schedule(settings.optimizer, plan.record.horizons),
        corpus=TokenStream(
            ground.data if ground else FollowedTokens(plan.tokens, plan.source, tokenizer),
            TokenProgress(),
            agreement.waits_and_stops,
            seed=settings.run.seed,
            seq_len=plan.seq_len,
        ),
        clock=StepClock(plan.step),
        stop=stop,
        grace=GracePeriod(stop, settings.checkpoints.grace_seconds),
        team=team,
        agreement=agreement,
        profiler=_profiler(plan, settings, team, compute),
        start_step=plan.step,
        validation_loss=plan.validation_loss,
    )


def _profiler(plan: Plan, settings: Settings, team: Team, compute: Compute) -> StepProfiler:
    """A trace is the one thing that this process writes into the store: its name is its own."""
    uri, name = settings.checkpoints.checkpoint_uri, plan.record.run_name
    scratch = DataDir(settings.data.data_dir).profiles
    keeper = TraceKeeper(lambda: open_store(uri, name), scratch, plan.epoch, team.rank)
    return StepProfiler(settings.logs.profiled, keeper, compute.device)
