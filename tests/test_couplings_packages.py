"""The packages themselves take a training step with a coupling: torchcfm, torchebm, flow_matching and Lightning."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fastsdot import InvalidArgument, SemiDiscreteOT
from fastsdot.couplings import CoupledBatches, Coupling
from fastsdot.storage import decode

# invalid escapes in docstrings of flow_matching, where an installer did not compile it beforehand
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid escape sequence:DeprecationWarning", "ignore:.*invalid escape sequence:SyntaxWarning"
)

N, SHAPE, BATCH = 150, (1, 4, 4), 32
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (N, *SHAPE), dtype=torch.uint8, generator=RANDOM)
LABELS = torch.randint(10, (N,), generator=RANDOM)
X0 = torch.randn(BATCH, *SHAPE, generator=RANDOM)
DATA = decode(IMAGES[:BATCH])  # the batch that a training loop passes along
T = torch.rand(BATCH, generator=RANDOM)


class Velocity(nn.Module):
    """v(x, t); the time as one more input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(17, 32), nn.SiLU(), nn.Linear(32, 16))

    def forward(self, x, t):
        return self.net(torch.cat([x.flatten(1), t[:, None]], 1)).reshape(x.shape)


@pytest.fixture
def coupling():
    ot = SemiDiscreteOT(IMAGES)
    ot.potential.copy_(torch.randn(N, generator=torch.Generator().manual_seed(1)))
    return Coupling(ot, LABELS)


def descends(loss_of, model, steps=20):
    """Steps on one batch lower its loss, so gradients reach the network."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(loss_of(model))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    "name", ["ExactOptimalTransportConditionalFlowMatcher", "SchrodingerBridgeConditionalFlowMatcher"]
)
def test_torchcfm_trains_on_our_pairs(coupling, name):
    matcher = getattr(pytest.importorskip("torchcfm"), name)(sigma=0.1)
    matcher.ot_sampler = coupling
    t, xt, ut = matcher.sample_location_and_conditional_flow(X0, DATA, T)
    index = coupling.ot.assign(X0)
    assert t is T
    if name.startswith("Exact"):
        assert torch.equal(ut, decode(IMAGES[index]) - X0)
        along = (1 - T[:, None, None, None]) * X0 + T[:, None, None, None] * decode(IMAGES[index])
        assert (xt - along).std() == pytest.approx(0.1, rel=0.2)
    descends(lambda model: (model(xt, t) - ut).square().mean(), Velocity())


def test_torchcfms_guided_flow_has_the_labels_of_the_targets(coupling):
    matcher = pytest.importorskip("torchcfm").ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    matcher.ot_sampler = coupling
    y0 = torch.arange(BATCH)
    t, xt, ut, labels0, labels1, noise = matcher.guided_sample_location_and_conditional_flow(
        X0, DATA, y0, LABELS[:BATCH], return_noise=True
    )
    index = coupling.ot.assign(X0)
    assert torch.equal(labels0, y0)
    assert torch.equal(labels1, LABELS[index])
    assert torch.equal(ut, decode(IMAGES[index]) - X0)
    assert noise.shape == xt.shape
    assert t.shape == (BATCH,)


def test_our_methods_have_the_signatures_of_torchcfms_sampler(coupling):
    from inspect import signature

    sampler = pytest.importorskip("torchcfm.optimal_transport").OTPlanSampler(method="exact")
    for name in ("get_map", "sample_map", "sample_plan", "sample_plan_with_labels"):
        theirs, ours = (signature(getattr(one, name)).parameters for one in (sampler, coupling))
        assert list(ours) == list(theirs), name
    i, j = coupling.sample_map(coupling.get_map(X0, DATA), BATCH)
    theirs = sampler.sample_map(sampler.get_map(X0, DATA), BATCH)
    assert (len(i), len(j)) == tuple(map(len, theirs))


def test_torchebm_trains_on_our_pairs(coupling):
    core = pytest.importorskip("torchebm.core")
    from torchebm.losses import EquilibriumMatchingLoss, FlowMatchingLoss

    core.BaseCoupling.register(Coupling)
    model = Velocity()
    loss = FlowMatchingLoss(model, coupling=coupling)
    assert loss.coupling is coupling
    terms = loss.training_losses(DATA, x0=X0, generator=torch.Generator().manual_seed(2))
    t = torch.rand(BATCH, generator=torch.Generator().manual_seed(2))
    x1 = coupling(X0).x1
    along = (1 - t[:, None, None, None]) * X0 + t[:, None, None, None] * x1
    expected = (model(along, t) - (x1 - X0)).square().flatten(1).mean(1)
    torch.testing.assert_close(terms["loss"], expected)
    descends(lambda _: loss(DATA, x0=X0, generator=torch.Generator().manual_seed(2)), model)
    assert EquilibriumMatchingLoss(model, coupling=coupling)(DATA).isfinite()


def test_torchebms_conditioning_on_a_batch_of_labels_is_refused(coupling):
    core = pytest.importorskip("torchebm.core")
    from torchebm.losses import FlowMatchingLoss

    class Labelled(Velocity):
        def forward(self, x, t, y):
            return super().forward(x, t) * (1 + y[:, None, None, None])

    core.BaseCoupling.register(Coupling)
    loss = FlowMatchingLoss(Labelled(), coupling=coupling)
    with pytest.raises(InvalidArgument, match=r"^y: "):
        loss(DATA, y=LABELS[:BATCH])


@pytest.mark.parametrize("scheduler", ["CondOTScheduler", "CosineScheduler"])
def test_flow_matchings_paths_take_our_pairs(coupling, scheduler):
    pytest.importorskip("flow_matching")
    from flow_matching.path import AffineProbPath, scheduler as schedulers

    path = AffineProbPath(getattr(schedulers, scheduler)())
    x_0, x_1 = coupling(X0)
    sample = path.sample(t=T, x_0=x_0, x_1=x_1)
    if scheduler == "CondOTScheduler":
        assert torch.equal(sample.dx_t, decode(IMAGES[coupling.ot.assign(X0)]) - X0)
    descends(lambda model: (model(sample.x_t, sample.t) - sample.dx_t).square().mean(), Velocity())


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers", "ignore:.*__len__"
)
def test_lightning_trains_on_the_stream(coupling, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Flow(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.velocity, self.seen = Velocity(), []

        def training_step(self, batch, number):
            x0, x1, label, index = batch
            assert torch.equal(x1, decode(IMAGES[index]))
            assert torch.equal(label, LABELS[index])
            self.seen.append(x0)
            t = torch.rand(len(x0))
            xt = torch.lerp(x0, x1, t[:, None, None, None])
            return (self.velocity(xt, t) - (x1 - x0)).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet
    )
    flow = Flow()
    trainer.fit(flow, DataLoader(CoupledBatches(coupling, BATCH, batches=3), batch_size=None, num_workers=1))
    assert trainer.global_step == 6
    rows = torch.cat(flow.seen)
    assert len(rows.unique(dim=0)) == 6 * BATCH
