# The public names: the only list of them. `__init__.py` imports them on first use; type checkers read them here.

from .cascade.stream import Retraction as Retraction
from .cascade.stream import StreamEvent as StreamEvent
from .cascade.stream import TextDelta as TextDelta
from .cascade.tier import Tier as Tier
from .config.tiers import BreakerSettings as BreakerSettings
from .config.tiers import TierCost as TierCost
from .errors import (
    AttemptsError as AttemptsError,
)
from .errors import (
    BudgetError as BudgetError,
)
from .errors import (
    BundleError as BundleError,
)
from .errors import (
    BundleMismatchError as BundleMismatchError,
)
from .errors import (
    CircuitOpenError as CircuitOpenError,
)
from .errors import (
    ClientDisconnected as ClientDisconnected,
)
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    DeliveryNotFoundError as DeliveryNotFoundError,
)
from .errors import (
    FactsError as FactsError,
)
from .errors import (
    FitError as FitError,
)
from .errors import (
    IlisGuardError as IlisGuardError,
)
from .errors import (
    MissingDependencyError as MissingDependencyError,
)
from .errors import (
    ModelError as ModelError,
)
from .errors import (
    PolicyError as PolicyError,
)
from .errors import (
    PromptTooLongError as PromptTooLongError,
)
from .errors import (
    QuestionError as QuestionError,
)
from .errors import (
    QueueStorageError as QueueStorageError,
)
from .errors import (
    RequestError as RequestError,
)
from .errors import (
    ReviewError as ReviewError,
)
from .errors import (
    ScoringError as ScoringError,
)
from .errors import (
    SignatureError as SignatureError,
)
from .errors import (
    SimulationError as SimulationError,
)
from .errors import (
    TicketChangedError as TicketChangedError,
)
from .errors import (
    TicketClaimedError as TicketClaimedError,
)
from .errors import (
    TicketConflictError as TicketConflictError,
)
from .errors import (
    TicketExpiredError as TicketExpiredError,
)
from .errors import (
    TicketNotFoundError as TicketNotFoundError,
)
from .errors import (
    TicketResolvedError as TicketResolvedError,
)
from .errors import (
    TransientModelError as TransientModelError,
)
from .errors import (
    WebhookSignatureError as WebhookSignatureError,
)
from .errors import (
    WeightsError as WeightsError,
)
from .guard import Guard as Guard
from .models import Model as Model
from .policy import Facts as Facts
from .policy import Policy as Policy
from .policy.explain import explain_decision as explain_decision
from .review import ReviewQueue as ReviewQueue
from .scoring import Scorer as Scorer
from .types import (
    Action as Action,
)
from .types import (
    Attempt as Attempt,
)
from .types import (
    Decision as Decision,
)
from .types import (
    ErrorInfo as ErrorInfo,
)
from .types import (
    Generation as Generation,
)
from .types import (
    Message as Message,
)
from .types import (
    Request as Request,
)
from .types import (
    RuleOutcome as RuleOutcome,
)
from .types import (
    Ruling as Ruling,
)
from .types import (
    Score as Score,
)
from .types import (
    Statistics as Statistics,
)
from .types import (
    StreamMode as StreamMode,
)
from .types import (
    Ticket as Ticket,
)
from .types import (
    Verdict as Verdict,
)

__version__: str
