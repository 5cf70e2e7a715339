"""What is asked of the stages of a strategy, without a configuration."""

from common import demo_geometry

from engram_exp.stage import Load, Task
from engram_exp.steps.fusion.step import Fusion
from engram_exp.steps.hashing.step import Hashing
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.projection.step import Projection
from engram_exp.steps.upload.step import Upload
from engram_exp.steps.widening.step import Widening
from engram_exp.strategy.plan import plan_stages

STEPS = {"hashing": Hashing, "lookup": Lookup, "widening": Widening, "projection": Projection, "fusion": Fusion}


def tasks_of(places, kinds=None, **changes):
    """64 x 4096 tokens of `demo` in bfloat16, unless told otherwise; `kinds` names other components of steps."""
    known = {**STEPS, **(kinds or {})}
    geometry = changes.pop("geometry", demo_geometry())
    asked = {"sequences": 64, "tokens": 64 * 4096, "batches": 4, "dtype": "bfloat16", "table": places["table"]}
    stages = plan_stages(places, widens=geometry.values_per_scale is not None, fuses=changes.pop("fuses", False))
    return [Task(known.get(stage.name, Upload), Load(stage, geometry, **{**asked, **changes})) for stage in stages]
