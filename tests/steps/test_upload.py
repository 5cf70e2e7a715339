"""What crosses the link in one transfer."""

import torch
from places import CPU

from engram_exp.config.derived import BATCHES, BATCHES_PAUSED
from engram_exp.steps.upload.pinned import MOST_ROUTES, PinnedUpload


def uploaded(*tensors):
    """What comes out, and how many copies that takes; a source need not be pinned for that."""
    upload = PinnedUpload(CPU)
    route = upload._route(tensors)
    for source, target in zip(route.sources, route.targets, strict=True):
        target.copy_(source)
    return route.results, len(route.sources)


def test_neighbours_cross_in_one_transfer_and_others_each_in_their_own():
    kv = torch.arange(60.0).view(4, 3, 5)
    behind = torch.arange(100)[30:]
    for tensors, copies in (
        ((kv[:, :-1], kv[:, -1]), 1),
        ((kv[:, -1], kv[:, :-1]), 1),
        ((behind[:12].view(3, 4), behind[12:20]), 1),
        ((behind[:12], behind[13:20]), 2),
        ((torch.arange(9)[:4], torch.arange(10, 19)[4:8]), 2),
        ((torch.arange(6), torch.arange(6.0)), 2),
    ):
        results, taken = uploaded(*tensors)
        assert taken == copies
        assert all(torch.equal(result, tensor) for result, tensor in zip(results, tensors, strict=True))


def test_the_routes_of_all_batches_are_remembered_beside_those_of_other_inputs():
    assert max(*BATCHES, BATCHES_PAUSED) < MOST_ROUTES
