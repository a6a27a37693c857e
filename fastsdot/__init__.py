"""Semi-discrete optimal transport from anything that can be sampled onto a data set."""

from .alternate import State as State, Stop as Stop, Trained as Trained, train as train
from .background import Background as Background
from .bracket import Bracket as Bracket
from .conditional import ConditionalOT as ConditionalOT
from .conditional_coupling import ConditionalCoupling as ConditionalCoupling
from .conditional_report import ConditionalReport as ConditionalReport, ConditionalSolution as ConditionalSolution
from .couplings import CoupledBatches as CoupledBatches, Coupling as Coupling, Pairs as Pairs
from .errors import (
    BackendUnavailable as BackendUnavailable,
    DataError as DataError,
    InvalidArgument as InvalidArgument,
    RankError as RankError,
    RunError as RunError,
    SourceError as SourceError,
)
from .fit import Fitted as Fitted, fit as fit
from .ots import NotConverged as NotConverged, Reason as Reason, Solution as Solution
from .report import Report as Report
from .semidiscrete import SemiDiscreteOT as SemiDiscreteOT
from .stopping import Chi2 as Chi2, Histogram as Histogram, Rule as Rule
from .theory import Precision as Precision
from .width import Width as Width
