"""Which tokens a job needs for its steps, and whether DATASET has enough of them."""

import logging
from collections.abc import Callable
from dataclasses import replace

from app.console import redacted
from app.data.preparation import Preparation
from app.data.sample_order import SampleOrder
from app.data.sources import PinnedSource
from app.data.token_cache import open_token_cache
from app.data.token_need import PrepareProgress, TokenNeed, Waiting
from app.errors import ConfigError
from app.training.job import Job

log = logging.getLogger(__name__)


def open_preparation(
    job: Job,
    source: PinnedSource,
    steps: range,
    report: Callable[[PrepareProgress], None],
    *,
    everything: bool = False,
) -> Preparation:
    """The preparation of the tokens for the optimizer steps `steps`, or of all of DATASET with
    `everything`, and of a validation split where one is asked for. Nothing is done yet.

    `report` is called while tokens are made, to say how far that is.
    """
    data, seq_len = job.settings.data, job.geometry.seq_len
    order = SampleOrder(n_sequences=None, seed=job.settings.run.seed)
    first_window = steps.start * job.geometry.global_batch_size // order.window
    need = TokenNeed(
        start=first_window * order.window * seq_len,
        stop=order.tokens_until(steps.stop * job.geometry.global_batch_size, seq_len),
        validation=data.val_tokens + 1 if data.val_every_steps else 0,
    )
    uri = job.settings.checkpoints.checkpoint_uri
    return Preparation(
        source,
        job.tokenizer,
        replace(need, stop=None) if everything else need,
        cache=lambda fingerprint: open_token_cache(uri, fingerprint),
        report=report,
    )


def check_data(job: Job, preparation: Preparation, waiting: Waiting) -> Job:
    """Wait for the first tokens. Raises ConfigError if DATASET is too small for the run.

    Returns the job, without validation if only the model asked for it, and there is no text for it.
    """
    data, seq_len = job.settings.data, job.geometry.seq_len
    n_tokens = preparation.wait_for("train", seq_len + 1, waiting).n_tokens("train")
    if n_tokens < seq_len + 1:
        raise ConfigError(
            f"DATASET has only {n_tokens} tokens to train on, and one sequence takes "
            f"SEQ_LEN + 1 = {seq_len + 1}: set a smaller SEQ_LEN or name a larger dataset"
        )
    if data.val_every_steps:
        index = preparation.wait_for("validation", seq_len + 1, waiting)
        if min(data.val_tokens, index.n_tokens("validation") - 1) < seq_len:
            if job.settings.is_default("VAL_EVERY_STEPS"):
                log.info(
                    "no validation: DATASET=%s is too small to hold out %d tokens",
                    redacted(data.dataset),
                    seq_len + 1,
                )
                return job.without_validation()
            raise ConfigError(
                f"VAL_EVERY_STEPS={data.val_every_steps}, but DATASET={data.dataset} is too "
                f"small to hold out {seq_len + 1} tokens: set VAL_EVERY_STEPS=0"
            )
    return job
