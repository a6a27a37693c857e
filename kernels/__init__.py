"""Reductions over all targets that never store the whole B×N matrix of scores.

A kernel sees a *form* (how a pair is summed) and a *bias* per target; the score of a pair is

    s_ij = form(x_i, y_j) + bias_j

and five reductions are taken over j, for x [B, D], y [N, D], bias [N]:

    argmin         min_j s_ij  and the smallest index that reaches it                        [B], [B]
    softmin        v_i = −ε log Σ_j exp(−s_ij / ε)                                           [B]
    soft_marginal  v_i  and  Σ_i r_i exp((v_i − s_ij) / ε)                                   [B], [N]
    topk           the k smallest scores, ascending, and their indices                       [B, k], [B, k]
    sample         an index, j with probability exp((v_i − s_ij) / ε)                        [B]

A target whose bias is +inf is never chosen and carries no mass, which is how zero weights enter; weights b_j of
the entropic reductions enter as −ε log b_j in the bias. Values are differentiable in x and bias.

``prepare(y, form)`` computes once what depends on y alone and picks the backends; `select` says which and why.
"""

if __name__ != "fastsdot.kernels":
    message = f"kernels: expected to be imported as fastsdot.kernels, not as {__name__}; use that name"
    raise ImportError(message)

from .blocks import Blocks as Blocks, in_blocks as in_blocks
from .form import Form as Form
from .lists import Sums as Sums, best_of_lists as best_of_lists, soft_lists as soft_lists
from .ops import (
    Targets as Targets,
    argmin as argmin,
    average as average,
    margins as margins,
    moments as moments,
    sample as sample,
    scores as scores,
    soft_marginal as soft_marginal,
    softmin as softmin,
    topk as topk,
)
from .prepared import Prepared as Prepared, prepare as prepare
from .select import BACKENDS as BACKENDS, refusal as refusal
from .shards import Shards as Shards, spans as spans
from .smallest import fold_columns as fold_columns
