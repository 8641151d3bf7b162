# The public names: the only list of them. `__init__.py` imports them on first use; type checkers read them here.

from .cascade.stream import Retraction as Retraction, StreamEvent as StreamEvent, TextDelta as TextDelta
from .cascade.tier import Tier as Tier
from .config.tiers import BreakerSettings as BreakerSettings, TierCost as TierCost
from .errors import (
    AttemptsError as AttemptsError,
    BudgetError as BudgetError,
    BundleError as BundleError,
    BundleMismatchError as BundleMismatchError,
    CircuitOpenError as CircuitOpenError,
    ClientDisconnected as ClientDisconnected,
    ConfigError as ConfigError,
    DecisionRecordedError as DecisionRecordedError,
    DeliveryNotFoundError as DeliveryNotFoundError,
    FactsError as FactsError,
    FitError as FitError,
    IlisGuardError as IlisGuardError,
    MissingDependencyError as MissingDependencyError,
    ModelError as ModelError,
    PolicyError as PolicyError,
    ProfileError as ProfileError,
    PromptTooLongError as PromptTooLongError,
    QuestionError as QuestionError,
    QueueStorageError as QueueStorageError,
    RequestConflictError as RequestConflictError,
    RequestError as RequestError,
    ReviewError as ReviewError,
    ScoringError as ScoringError,
    SignatureError as SignatureError,
    SimulationError as SimulationError,
    ThinkingError as ThinkingError,
    TicketChangedError as TicketChangedError,
    TicketClaimedError as TicketClaimedError,
    TicketConflictError as TicketConflictError,
    TicketExpiredError as TicketExpiredError,
    TicketNotFoundError as TicketNotFoundError,
    TicketPendingError as TicketPendingError,
    TicketResolvedError as TicketResolvedError,
    TransientModelError as TransientModelError,
    UnacceptedFindingsError as UnacceptedFindingsError,
    UnfinishedAnswerError as UnfinishedAnswerError,
    WebhookSignatureError as WebhookSignatureError,
    WeightsError as WeightsError,
)
from .guard import Guard as Guard
from .models import Model as Model
from .policy import Facts as Facts, Policy as Policy
from .policy.explain import explain_decision as explain_decision
from .review import ReviewQueue as ReviewQueue
from .scoring import Scorer as Scorer
from .types import (
    Action as Action,
    Attempt as Attempt,
    Decision as Decision,
    ErrorInfo as ErrorInfo,
    Generation as Generation,
    Message as Message,
    Request as Request,
    RuleOutcome as RuleOutcome,
    Ruling as Ruling,
    Score as Score,
    Statistics as Statistics,
    StreamMode as StreamMode,
    Ticket as Ticket,
    Verdict as Verdict,
)

__version__: str
