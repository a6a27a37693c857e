"""SemiDiscreteOT: transport of a continuous source onto N weighted targets.

One potential ψ_j per target turns the cost into a map and a function (ε = 0):

    T(x) = y_j,  j = argmin_j c(x, y_j) − ψ_j              φ(x) = min_j c(x, y_j) − ψ_j
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastsdot import changing, checkpoint, kernels, ots, saving
from fastsdot.atoms import first_equals, merged
from fastsdot.bracket import Bracket, bracket
from fastsdot.costs import Pairing, make_cost
from fastsdot.errors import InvalidArgument, require_finite, require_number
from fastsdot.ranks import Ranks, Shared, lay_out, share
from fastsdot.report import Report
from fastsdot.sources import SourceLike
from fastsdot.stages import Ascent
from fastsdot.stopping import Rule
from fastsdot.storage import Storage, decode, place
from fastsdot.weights import as_weights


class SemiDiscreteOT(nn.Module):
    """Optimal transport from a source that can be sampled onto `targets` y of weights b.

    Parameters
    ----------
    targets
        [N, *shape], a Tensor, ndarray or np.memmap of float32, float16, bfloat16 or uint8 (a byte k stands for
        k/255); float64 is stored as float32. They are not copied where that can be helped: do not change them
        afterwards. Kernels keep float32 layouts of their own beside them, or read them in blocks; see `memory`.
    cost, p
        A name of `fastsdot.costs`, or a callable `cost(x, y)` that broadcasts and reduces the last axis; p for "lp".
    weights
        [N], non-negative, scaled to sum 1; 1/N by default. A target of weight 0 is never chosen. Identical targets are
        one at ε = 0: the first of them is chosen, with the weights of all, its own be 0 (see `fastsdot.atoms`).
    epsilon
        Entropic temperature in units of cost; 0 is hard.
    backend
        A name of `fastsdot.kernels.BACKENDS`, or None for the fastest that applies with the precision asked for.
    precision
        "exact", the default: the target chosen has the smallest score up to float32 rounding, by low precision with a
        proof where that is fastest; "float32" takes no step in lower precision; "low" leaves the proof out.
    device
        Where targets, potential and samples are; that of the targets by default.
    memory
        Bytes that the kernels' layouts may take; where they need more, every pass reads the targets in blocks. By
        default 1 GiB for a mapped file, half of a GPU's free memory, and no limit for targets that are in place.
    group, shards
        A group of torch.distributed whose ranks share the work, each making the same calls with the same arguments,
        and the number of shards that the targets are in, a divisor of its size: by default 1, a copy on every rank,
        where the layouts fit `memory`, and otherwise a shard a rank. See `fastsdot.ranks`.

    Raises `InvalidArgument` for values that cannot be used, `BackendUnavailable` with the reason when the backend named
    cannot run, and `RankError` when another rank fails or does not answer. Source: Chen et al., ICML 2019, section 3.1.
    """

    targets: Tensor | Storage | Shared
    weights: Tensor
    potential: Tensor
    first: Tensor | None

    def __init__(
        self,
        targets: Tensor | np.ndarray,
        *,
        cost: str | Pairing = "sqeuclidean",
        p: float | None = None,
        weights: Tensor | np.ndarray | None = None,
        epsilon: float = 0.0,
        backend: str | None = None,
        precision: str | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
        group: "torch.distributed.ProcessGroup | None" = None,
        shards: int | None = None,
    ):
        super().__init__()
        self.cost = make_cost(cost, p)
        require_number("epsilon", epsilon, least=0)
        self.epsilon = float(epsilon)
        if memory is not None:
            require_number("memory", memory, above=-1, whole=True)
        self.ranks = Ranks(group, shards) if group is not None else None
        if self.ranks is None:
            stored = place(targets, device, memory)
        else:
            about = {"cost": str((self.cost.name, self.cost.p)), "epsilon": str(epsilon), "memory": str(memory)}
            stored = share(targets, device, memory, self.ranks, about, weights)
        n = stored.shape[0]
        if isinstance(stored, Tensor):
            self.register_buffer("targets", stored, persistent=False)
        else:
            self.targets = stored
        self.register_buffer("weights", as_weights(weights, n).to(stored.device))
        self.register_buffer("potential", torch.zeros(n, dtype=torch.float32, device=stored.device))
        self.register_buffer("first", None if self.epsilon else first_equals(self.targets), persistent=False)
        self.requested = {"backend": backend, "precision": precision}
        self.options = self.requested | {"cost": cost, "p": p, "epsilon": epsilon}
        self.options |= {"memory": memory, "group": group, "shards": shards}
        self.ascent: Ascent | None = None
        self._prepare()

    def _prepare(self) -> None:
        if not isinstance(self.targets, Tensor):
            self._embedding, self._kernel = lay_out(self.cost, self.targets, self.requested)
            return
        y = decode(self.targets).reshape(self.targets.shape[0], -1)
        self._embedding = self.cost.embed_targets(y)
        self._kernel = kernels.prepare(self._embedding.y, self._embedding.form, **self.requested)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SemiDiscreteOT":
        """Follow `.to(device)`; whatever dtype the module is cast to, what it holds keeps its own."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in kept.items():
            cast = getattr(self, name)
            if cast.dtype != value.dtype:
                setattr(self, name, value.to(cast.device))
        if not isinstance(self.targets, Tensor):
            self.targets = self.targets.to(self.weights.device)
        if self.ascent is not None:
            self.ascent = self.ascent.to(self.targets.device)
        self._prepare()
        return self

    def extra_repr(self) -> str:
        n, shape = self.targets.shape[0], list(self.shape)
        return f"targets={n}, shape={shape}, cost={self.cost.name!r}, epsilon={self.epsilon}, backend={self.backend!r}"

    @property
    def shape(self) -> torch.Size:
        """The shape of one target."""
        return self.targets.shape[1:]

    @property
    def device(self) -> torch.device:
        """Where targets and potential are, and samples have to be."""
        return self.targets.device

    @property
    def atoms(self) -> Tensor:
        """The weights b by which the transport is judged, [N]: of identical targets the first has those of all."""
        return merged(self.weights, self.first)

    @property
    def backend(self) -> str:
        """The backend that runs the argmin."""
        return self._kernel.backend("argmin")

    def assign(self, x: Tensor) -> Tensor:
        """argmin_j c(x, y_j) − ψ_j over targets of positive weight, the smallest j among ties: [B] int64.

        Raises `InvalidArgument` when x is not a finite [B, *shape] tensor on the targets' device. While
        `torch.compile` traces, finiteness is not checked.
        """
        return self._assign(self._flat(x), self.potential)

    def transport(self, x: Tensor) -> Tensor:
        """T(x), the target that `assign` chooses: [B, *shape] in the dtype of x."""
        return decode(self.targets[self.assign(x)]).to(x.dtype)

    forward = transport

    def c_transform(self, x: Tensor) -> Tensor:
        """φ(x) = min_j c(x, y_j) − ψ_j, [B]; for ε > 0, −ε log Σ_j b_j exp((ψ_j − c(x, y_j)) / ε).

        Differentiable in x and in the potential. Source: Chen et al. 2019, eq. 2; the soft form is Genevay et al.,
        NeurIPS 2016, eq. 5.
        """
        x = self._flat(x)
        if self.epsilon:
            value = kernels.softmin(
                self._embed(x), self._kernel, self._bias(self.potential, self.epsilon), self.epsilon
            )
            return value + self.cost.row(x, self._embedding)
        index = self._assign(x.detach(), self.potential)
        y = decode(self.targets[index]).reshape(x.shape)
        return self.cost(x, y) - self.potential[index]

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A target drawn for each x from the entropic plan: [B] int64.

            P(j | x) = p_j(x) = b_j exp((φ(x) + ψ_j − c(x, y_j)) / ε)

        Exact, in one pass over the targets. Draws are independent; `torch.manual_seed` or `generator` repeats them.
        Raises `InvalidArgument` when ε = 0. Source: Genevay et al., NeurIPS 2016, section 2.
        """
        x, bias = self._soft(x)
        device = self.device if generator is None else generator.device
        seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
        if self.ranks is not None:
            seed = self.ranks.gather(seed.to(self.device))[0]
        return kernels.sample(self._embed(x), self._kernel, bias, self.epsilon, seed)

    def barycenter(self, x: Tensor) -> Tensor:
        """Σ_j p_j(x) y_j, the mean of what `sample` draws: [B, *shape] in the dtype of x; without gradients.

        Raises `InvalidArgument` when ε = 0. Source: the barycentric projection of Seguy et al., ICLR 2018, section 4.
        """
        flat, bias = self._soft(x)
        mean = kernels.average(self._embed(flat), self._kernel, bias, self.epsilon, self.targets)
        unit = decode(torch.ones((), dtype=self.targets.dtype, device=mean.device))  # what is linear suits means too
        return (unit * mean).reshape(x.shape).to(x.dtype)

    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k smallest c(x, y_j) − ψ_j in ascending order and their targets' indices: [B, k], [B, k] int64.

        Raises `InvalidArgument` unless k is an integer, 1 ≤ k ≤ N, and as `assign` does.
        """
        require_number("k", k, least=1, whole=True)
        if k > self.targets.shape[0]:
            raise InvalidArgument("k", f"1 ≤ k ≤ {self.targets.shape[0]}, the number of targets", str(k), "lower k")
        x = self._flat(x)
        value, index = kernels.topk(self._embed(x), self._kernel, self._bias(self.potential), k)
        return value + self.cost.row(x, self._embedding)[:, None], index

    def evaluate(self, source: SourceLike, samples: int = 100_000, batch_size: int | None = None) -> Report:
        """Measure marginal error, primal, dual and gap of the potential on fresh samples.

        Batches are of at most `batch_size`, by default 4 096, and of at most a 16th of the samples; where ε > 0 what is
        left over after whole batches is not drawn.

        Raises `InvalidArgument` for numbers out of range and `SourceError` for batches that are not finite samples.
        """
        return ots.evaluate(self, source, samples, batch_size)

    def bracket(
        self, source: SourceLike, samples: int = 200_000, *, confidence: float = 0.95, batch_size: int | None = None
    ) -> Bracket:
        """An interval that holds the transport cost W with that confidence; see `fastsdot.bracket`."""
        return bracket(self, source, samples, confidence=confidence, batch_size=batch_size)

    def solve(
        self,
        source: SourceLike,
        *,
        tol: float | Rule = 0.05,
        max_samples: int | None = None,
        max_seconds: float | None = None,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        progress: Callable | None = None,
        callback: Callable | None = None,
        throw: bool = False,
    ) -> "ots.Solution":
        """OTS: find the ψ that maximises the semi-dual over samples; see `fastsdot.ots.solve`."""
        return ots.solve(
            self,
            source,
            tol=tol,
            max_samples=max_samples,
            max_seconds=max_seconds,
            batch_size=batch_size,
            generator=generator,
            progress=progress,
            callback=callback,
            throw=throw,
        )

    def add(
        self,
        targets: Tensor | np.ndarray,
        weights: Tensor | np.ndarray | None = None,
        *,
        source: SourceLike | None = None,
    ) -> "SemiDiscreteOT":
        """A new transport, onto these targets too, that a solve continues; see `fastsdot.changing.add`."""
        return changing.add(self, targets, weights, source)

    def remove(self, index: Tensor | np.ndarray | list[int]) -> "SemiDiscreteOT":
        """A new transport, onto the other targets; see `fastsdot.changing.remove`."""
        return changing.remove(self, index)

    def reweight(self, weights: Tensor | np.ndarray | None, *, source: SourceLike | None = None) -> "SemiDiscreteOT":
        """A new transport, onto the same targets with other weights; see `fastsdot.changing.reweight`."""
        return changing.reweight(self, weights, source)

    def retarget(
        self,
        targets: Tensor | np.ndarray,
        origin: Tensor | np.ndarray | list[int],
        weights: Tensor | np.ndarray | None = None,
        *,
        source: SourceLike | None = None,
    ) -> "SemiDiscreteOT":
        """A new transport, onto targets some of which were old ones; see `fastsdot.changing.retarget`."""
        return changing.retarget(self, targets, origin, weights, source)

    def save(self, path: str | Path) -> None:
        """Write potential, weights, cost and the state of the ascent to a safetensors file, whole or not at all.

        The targets themselves are not stored. Of several ranks the first writes; the others wait for it.
        """

        def write() -> None:
            checkpoint.write(Path(path), saving.state_of(self))

        write() if self.ranks is None else self.ranks.alone(write)

    @classmethod
    def load(cls, path: str | Path, targets: Tensor | np.ndarray, **options) -> "SemiDiscreteOT":
        """Read what `save` wrote, for the same targets; a solve then continues where the saved one was.

        `options` are the constructor's (give a callable cost again).

        Raises `InvalidArgument` when the file is unreadable or was saved for other targets.
        """
        state = checkpoint.read(path, error=InvalidArgument)
        if "weights" not in state:
            remedy = "use ConditionalOT.load, or for a run's checkpoint train(..., resume=True)"
            raise InvalidArgument("path", "a file of one SemiDiscreteOT", str(path), remedy)
        ot = cls(targets, **saving.options_of(state, options))
        saving.restore(ot, state)
        return ot

    def _flat(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            received = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise InvalidArgument(
                "x", "a floating point tensor", received, "convert it with torch.as_tensor(x).float()"
            )
        if x.shape[1:] != self.shape or x.dim() == 0:
            shape = ", ".join(("B", *map(str, self.shape)))
            raise InvalidArgument(
                "x", f"shape [{shape}]", f"{list(x.shape)}", "shape samples like targets, with a batch axis"
            )
        if x.device != self.device:
            raise InvalidArgument("x", f"device {self.device}", str(x.device), "move x or the module with .to()")
        x = x.reshape(x.shape[0], self.shape.numel()).float()
        require_finite("x", x)
        return x

    @torch.no_grad()
    def _soft(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Checked samples and the kernels' bias for a plan of positive temperature."""
        if not self.epsilon:
            remedy = "use transport, which sends all of x to one target, or give epsilon="
            raise InvalidArgument("epsilon", "a number above 0", repr(self.epsilon), remedy)
        return self._flat(x), self._bias(self.potential, self.epsilon)

    def _embed(self, x: Tensor) -> Tensor:
        return self.cost.embed(x, self._embedding.centre)

    def _bias(self, potential: Tensor, epsilon: float = 0.0) -> Tensor:
        """What kernels add per target: the cost's own term − ψ (− ε log b), and +inf where b is 0."""
        require_finite("potential", potential)
        bias, b = self._embedding.column - potential, self.atoms
        if epsilon:
            bias = bias - epsilon * b.log()
        return torch.where(b > 0, bias, torch.inf)

    def _assign(self, x: Tensor, potential: Tensor) -> Tensor:
        return kernels.argmin(self._embed(x), self._kernel, self._bias(potential))[1]

    def _marginal(self, x: Tensor, potential: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """φ [B] with the indices [B] for ε = 0, with the batch's mean soft masses [N] otherwise; no gradients."""
        embedded, bias = self._embed(x), self._bias(potential, epsilon)
        if epsilon:
            value, chosen = kernels.soft_marginal(embedded, self._kernel, bias, epsilon)
        else:
            value, chosen = kernels.argmin(embedded, self._kernel, bias)
        return value + self.cost.row(x, self._embedding), chosen
