import pytest

from engram_exp.config.derived import stages_of
from engram_exp.errors import ConfigError
from engram_exp.strategy.plan import (
    made_up_inputs,
    needed_stages,
    overlapping,
    plan_stages,
    select_cases,
    stages_of_whole,
)


def names(hashing, lookup, projection, table="host", **changes):
    places = {"table": table, "hashing": hashing, "lookup": lookup, "projection": projection}
    stages = plan_stages(places, **changes)
    return [stage.name for stage in stages]


def test_an_upload_stands_wherever_the_link_is_crossed():
    assert names("host", "host", "host") == ["hashing", "lookup", "projection", "up_kv"]
    assert names("host", "host", "device") == ["hashing", "lookup", "up_embed", "projection"]
    assert names("host", "device", "device") == ["hashing", "up_rows", "lookup", "projection"]
    assert names("device", "device", "device") == ["up_ids", "hashing", "lookup", "projection"]
    assert names("device", "device", "device", table="device") == ["up_ids", "hashing", "lookup", "projection"]


def test_stored_bytes_cross_the_link_and_are_widened_behind_it():
    assert names("host", "host", "device", widens=True) == ["hashing", "lookup", "up_embed", "widening", "projection"]
    assert names("host", "host", "host", widens=True) == ["hashing", "lookup", "widening", "projection", "up_kv"]
    assert names("device", "device", "device", widens=True) == ["up_ids", "hashing", "lookup", "widening", "projection"]


def test_a_lookup_that_widens_leaves_nothing_to_widen_behind_it():
    places = dict.fromkeys(("table", "hashing", "lookup", "projection"), "device")
    *_, lookup, projection = plan_stages(places, widens=True, looked_up="embeddings")
    assert (lookup.name, lookup.makes, projection.needs) == ("lookup", "embeddings", "embeddings")
    assert plan_stages(places, looked_up="embeddings") == plan_stages(places), "rows are the embeddings"


def test_parts_cross_the_link_and_are_widened_behind_it():
    places = {**dict.fromkeys(("table", "hashing", "lookup"), "host"), "projection": "device"}
    lookup, upload, widening = plan_stages(places, widens=True, looked_up="parts")[1:4]
    assert [lookup.makes, upload.makes, widening.needs, widening.makes] == [*["parts"] * 3, "embeddings"]


def test_a_fusion_stands_on_the_device_behind_keys_and_value():
    assert names("host", "host", "host", fuses=True) == ["hashing", "lookup", "projection", "up_kv", "fusion"]
    assert names("host", "host", "device", fuses=True) == ["hashing", "lookup", "up_embed", "projection", "fusion"]
    assert names("device", "device", "device", fuses=True)[-2:] == ["projection", "fusion"]


def test_full_ends_with_keys_and_value_and_layer_with_the_hidden_state():
    for on_cpu, last in ((True, "up_kv"), (False, "projection")):
        projection = "host" if on_cpu else "device"
        places = {"table": "host", "hashing": "host", "lookup": "host", "projection": projection}
        stages = plan_stages(places, fuses=True)
        assert [stage.name for stage in stages_of_whole("full", stages)][-1] == last
        assert stages_of_whole("layer", stages) == stages
        assert stages_of_whole("full", stages) == plan_stages(places)


@pytest.mark.parametrize(
    ("places", "chunked", "beside"),
    [
        (("host", "host", "host"), "hashing", "up_kv"),
        (("host", "host", "device"), "hashing", "up_embed"),
        (("device", "device", "device"), "lookup", "lookup"),
    ],
)
@pytest.mark.parametrize("has_link", [True, False])
def test_chunks_begin_with_what_the_host_does_or_else_with_the_lookup(places, chunked, beside, has_link):
    steps = dict(zip(("hashing", "lookup", "projection"), places, strict=True))
    stages = [stage for stage in plan_stages({"table": "host", **steps}) if has_link or not stage.is_upload]
    found = [*(stage.name for stage in stages), "none"]
    without_a_link = beside if beside == "lookup" else "none"
    assert [found[number] for number in overlapping(stages)] == [chunked, beside if has_link else without_a_link]


@pytest.mark.parametrize(
    ("places", "key"),
    [
        (("device", "host", "device"), "strategy.lookup"),
        (("host", "device", "host"), "strategy.projection"),
        (("disk", "host", "host"), "strategy.hashing"),
        (("host", "host", "host", "device"), "strategy.lookup"),
        (("host", "host", "host", "moon"), "strategy.table"),
    ],
)
def test_impossible_placements_are_refused(places, key):
    with pytest.raises(ConfigError, match=rf"^{key}="):
        names(*places)


def test_cases_and_their_aliases(configure):
    on_gpu, on_cpu = (stages_of(configure(f"strategy={name}")) for name in ("kv_on_gpu", "kv_on_cpu"))
    assert select_cases("all", on_gpu) == ("hashing", "lookup", "up_embed", "projection", "full")
    assert select_cases(["all"], on_cpu) == ("hashing", "lookup", "projection", "up_kv", "full")
    assert select_cases(["compute", "hash"], on_gpu) == ("hashing", "lookup", "projection")
    assert select_cases(["up_kv", "up_embed"], on_gpu) == ("up_embed", "up_kv")
    assert select_cases("full", on_cpu) == ("full",)


@pytest.mark.parametrize("requested", [[], ["hashing", "sleep"], "", [1], None, 5])
def test_unknown_cases_are_refused(configure, requested):
    with pytest.raises(ConfigError, match=r"^cases(=.*)?: .*hashing, lookup, widening, projection.*hash, compute"):
        select_cases(requested, stages_of(configure()))


def test_widening_needs_rows_that_are_not_yet_wide(configure):
    with pytest.raises(ConfigError, match=r"^cases=widening: .*dtype=fp8"):
        select_cases(["widening"], stages_of(configure()))
    assert select_cases("widening", stages_of(configure("dtype=fp8"))) == ("widening",)


@pytest.mark.parametrize("strategy", ["uva", "device"])
def test_a_lookup_on_the_device_widens_unless_it_is_told_not_to(configure, strategy):
    fused = stages_of(configure(f"strategy={strategy}", "dtype=fp8"))
    assert [stage.name for stage in fused] == ["up_ids", "hashing", "lookup", "projection"]
    with pytest.raises(ConfigError, match=r"^cases=widening: the lookup widens .* with lookup\.widen=false they are"):
        select_cases(["widening"], fused)
    apart = stages_of(configure(f"strategy={strategy}", "dtype=fp8", "lookup.widen=false"))
    assert [stage.name for stage in apart] == ["up_ids", "hashing", "lookup", "widening", "projection"]
    for one, other in (("true", "false"), ("false", "true")):
        plain = [stages_of(configure(f"strategy={strategy}", f"lookup.widen={widen}")) for widen in (one, other)]
        assert plain[0] == plain[1], "rows in the compute dtype are embeddings"


def test_the_originals_upload_is_of_what_the_projection_needs(configure):
    for widen in ("true", "false"):
        stages = stages_of(configure("strategy=uva", "dtype=fp8", f"lookup.widen={widen}"))
        (upload,) = needed_stages(["up_embed"], stages)
        assert upload.makes == "embeddings"


def test_a_layer_needs_a_fusion(configure):
    for case in ("layer", "fusion"):
        with pytest.raises(
            ConfigError, match=rf"^cases={case}: no fusion is chosen; fusion=gated or fusion=gated_conv"
        ):
            select_cases([case], stages_of(configure()))
    stages = stages_of(configure("fusion=gated_conv"))
    assert select_cases("all", stages) == ("hashing", "lookup", "up_embed", "projection", "fusion", "full", "layer")
    assert select_cases(["layer", "up_kv", "full"], stages) == ("up_kv", "full", "layer")


def needed(cases, stages):
    return [stage.name for stage in needed_stages(cases, stages)]


def test_only_what_the_cases_need_is_built(configure):
    stages = stages_of(configure("strategy=kv_on_gpu"))
    assert needed(["hashing"], stages) == ["hashing"]
    assert needed(["lookup"], stages) == ["hashing", "lookup"]
    assert needed(["projection", "up_kv"], stages) == ["projection", "up_kv"]
    assert needed(["full", "up_kv"], stages) == ["hashing", "lookup", "up_embed", "projection", "up_kv"]
    fusing = stages_of(configure("strategy=kv_on_gpu", "fusion=gated_conv"))
    assert needed(["full"], fusing) == ["hashing", "lookup", "up_embed", "projection"]
    assert needed(["layer"], fusing) == ["hashing", "lookup", "up_embed", "projection", "fusion"]
    assert needed(["fusion"], fusing) == ["fusion"]


@pytest.mark.parametrize(
    ("cases", "made_up"),
    [
        (["hashing", "lookup", "up_embed", "projection", "up_kv"], ["up_kv"]),
        (["hashing", "lookup"], []),
        (["projection"], ["projection"]),
        (["up_embed"], ["up_embed"]),
        (["lookup", "projection"], ["projection"]),  # what the lookup makes has not crossed the link
        (["up_rows", "hashing"], ["up_rows"]),  # row ids are there, but not where an upload would find them
    ],
)
def test_inputs_are_made_up_where_nothing_makes_them(configure, cases, made_up):
    stages = stages_of(configure("strategy=kv_on_gpu"))
    assert [stage.name for stage in made_up_inputs(needed_stages(cases, stages), stages)] == made_up


def test_without_a_link_both_sides_are_one(configure):
    stages = [stage for stage in stages_of(configure("strategy=kv_on_gpu")) if stage.place != "link"]
    assert made_up_inputs(needed_stages(["full"], stages), stages) == ()
    assert [stage.name for stage in made_up_inputs(needed_stages(["projection"], stages), stages)] == ["projection"]
