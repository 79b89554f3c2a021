"""A run that this process may write to."""

from dataclasses import dataclass

from app.data.token_stream import TokenStream
from app.observe.prometheus import RunMetrics
from app.ranks.team import Team
from app.run.lease import Lease
from app.stores.contract import Store
from app.training.agreement import Agreement
from app.training.job import Job


@dataclass(frozen=True)
class HeldRun:
    """The job, its store and tokens, and the lease that lets this process write.

    `prometheus` is what is served on METRICS_PORT, if that is set.
    """

    job: Job
    store: Store
    lease: Lease
    corpus: TokenStream
    prometheus: RunMetrics
    team: Team
    agreement: Agreement
