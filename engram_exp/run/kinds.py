"""What the component of each stage usually is."""

from __future__ import annotations

from collections.abc import Mapping

from engram_exp.stage import PlannedStage, Stage
from engram_exp.steps.fusion.step import Fusion
from engram_exp.steps.hashing.step import Hashing
from engram_exp.steps.lookup.step import Lookup, PartsLookup, WideningLookup
from engram_exp.steps.projection.step import Projection
from engram_exp.steps.upload.step import Upload
from engram_exp.steps.widening.step import Widening
from engram_exp.vocabulary import FUSION, HASHING, LOOKUP, PROJECTION, WIDENING

KINDS: Mapping[str, type[Stage]] = {
    HASHING.name: Hashing, LOOKUP.name: Lookup, WIDENING.name: Widening, PROJECTION.name: Projection,
    FUSION.name: Fusion,
}  # fmt: skip
LOOKUPS: Mapping[str, type[Stage]] = {kind.makes: kind for kind in (Lookup, WideningLookup, PartsLookup)}


def step_of(stage: PlannedStage) -> type[Stage]:
    """What a stage usually is, and whose reference it is held to."""
    if stage.is_upload:
        return Upload
    return LOOKUPS[stage.makes] if stage.name == LOOKUP.name else KINDS[stage.name]
