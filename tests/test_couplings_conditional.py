"""Couplings whose pairs have the labels asked for."""

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from fastsdot import InvalidArgument
from fastsdot.conditional import ConditionalOT
from fastsdot.conditional_coupling import ConditionalCoupling
from fastsdot.couplings import CoupledBatches

N, SHAPE, BATCH = 120, (2, 3), 64
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (N, *SHAPE), dtype=torch.uint8, generator=RANDOM)
LABELS = torch.tensor([3, 5, 5, 9])[torch.randint(4, (N,), generator=RANDOM)]
X0 = torch.randn(BATCH, *SHAPE, generator=RANDOM)
ASKED = torch.tensor([3, 5, 9])[torch.randint(3, (BATCH,), generator=RANDOM)]


def coupling(dropout=0.0, **options):
    ot = ConditionalOT(IMAGES, LABELS, **options)
    for k, part in enumerate(ot.parts):
        part.potential.copy_(torch.randn(len(part.potential), generator=torch.Generator().manual_seed(k)))
    return ConditionalCoupling(ot, dropout=dropout)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_pairs_have_the_labels_asked_for(epsilon):
    pairs = coupling(epsilon=epsilon)(X0, y=ASKED)
    assert torch.equal(LABELS[pairs.index], ASKED)
    assert torch.equal(pairs.labels, ASKED)
    assert torch.equal(pairs.x1, IMAGES[pairs.index].float() / 255)
    if not epsilon:
        assert torch.equal(pairs.index, coupling().ot.assign(X0, ASKED))


def test_dropped_labels_go_by_the_potential_over_all():
    pairs = coupling(unconditional=True)
    asked = torch.where(torch.arange(BATCH) % 2 == 0, -1, ASKED)
    found = pairs(X0, y=asked)
    index = pairs.ot.members(None)[pairs.ot[None].assign(X0)]
    assert torch.equal(found.index[::2], index[::2])
    assert torch.equal(LABELS[found.index[1::2]], ASKED[1::2])
    assert torch.equal(found.x1, IMAGES[found.index].float() / 255)
    assert torch.equal(found.labels, asked)


def test_torchcfms_guided_flow_is_told_the_labels_of_its_targets():
    matcher = pytest.importorskip("torchcfm").ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    matcher.ot_sampler = pairs = coupling()
    _, _, ut, _, y1 = matcher.guided_sample_location_and_conditional_flow(X0, X0, None, ASKED)
    assert torch.equal(y1, ASKED)
    assert torch.equal(ut, pairs.ot.transport(X0, ASKED) - X0)


def test_torchebm_is_told_the_labels_of_its_targets():
    core = pytest.importorskip("torchebm.core")
    from torchebm.losses import FlowMatchingLoss

    class Still(torch.nn.Module):
        """Zero, whatever it is asked for."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, y):
            return self.scale * x * y[:, None, None]

    pairs = coupling()
    core.BaseCoupling.register(ConditionalCoupling)
    terms = FlowMatchingLoss(Still(), coupling=pairs).training_losses(X0, {"y": ASKED}, x0=X0)
    expected = (pairs.ot.transport(X0, ASKED) - X0).square().flatten(1).mean(1)
    torch.testing.assert_close(terms["loss"], expected)


def test_streams_draw_labels_by_their_shares_and_leave_some_out():
    def labels(pairs, batches=40):
        found = []
        for _, x1, label, index in islice(DataLoader(CoupledBatches(pairs, 256), batch_size=None), batches):
            assert torch.equal(x1, IMAGES[index].float() / 255)
            assert torch.equal(LABELS[index][label >= 0], label[label >= 0])
            found.append(label)
        return torch.cat(found)

    torch.manual_seed(0)
    share = (LABELS == 5).double().mean()
    all_labels = labels(coupling())
    assert (all_labels == 5).double().mean() == pytest.approx(float(share), abs=0.02)
    some = labels(coupling(0.3, unconditional=True))
    assert (some == -1).double().mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("argument", "use"),
    [
        ("y", lambda: coupling()(X0)),
        ("y", lambda: coupling().sample_plan(X0, X0)),
        ("labels", lambda: coupling()(X0, y=ASKED + 1)),
        ("labels", lambda: coupling()(X0, y=torch.full((BATCH,), -1))),
        ("dropout", lambda: coupling(1.5)),
        ("ot", lambda: ConditionalCoupling(ConditionalOT(IMAGES, LABELS.numpy().astype(str)))),
    ],
)
def test_what_cannot_be_coupled_is_said(argument, use):
    with pytest.raises(InvalidArgument) as caught:
        use()
    assert caught.value.argument == argument
