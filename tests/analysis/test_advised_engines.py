"""What an engine's user is told: what it can do of what was measured, how, and what that costs."""

import re

import pandas as pd
import pytest
from common import ROOT
from made_up import ask, rows, three
from omegaconf import OmegaConf

from engram_exp.analysis.advice_in_words import lines_of
from engram_exp.analysis.engines import DECODE, RELEASES, USES, settings_for

VLLM, SGLANG = "vLLM 0.33.0", "SGLang 0.5.23"


def test_engines_get_what_they_can_do_and_its_price():
    decode, prefill = ask(three()).choices
    assert (decode.engines[VLLM].strategy, decode.engines[VLLM].ms_per_layer) == ("uva", decode.ms_per_layer)
    assert (prefill.engines[VLLM].strategy, prefill.engines[VLLM].ms_per_layer.ms) == ("uva", 64.0)
    text = "\n".join(lines_of(ask(three())))
    assert "\n  vLLM 0.33.0 as uva, not its own way: --engram-config '{\"cpu_offload\": true}'\n" in text
    nearest = "no option for this strategy; the nearest is uva, not its own way, 64 ms a layer:"
    assert f"\n  vLLM 0.33.0: {nearest} --engram-config '{{\"cpu_offload\": true}}'\n" in text
    assert text.count("note: vLLM 0.33.0 as uva: ") == 1


def test_an_engine_has_the_time_of_its_own_way_where_that_was_measured():
    own = rows("uva", {64: 0.3, 65536: 90.0}, components="vllm_0_33", lookup="vllm_0_33")
    frame = pd.concat([three(components="tuned"), own])
    decode, _ = ask(frame).choices
    option = decode.engines[VLLM]
    assert (decode.ms_per_layer.ms, option.ms_per_layer.ms, option.is_own) == (0.2, 0.3, True)
    assert not decode.engines[SGLANG].is_own


@pytest.mark.parametrize(
    ("spread", "told"),
    [(0.01, "of which the choice, not its way, saves 0.1"), (0.4, "undecided against the time above")],
)
def test_an_engine_s_own_way_has_an_interval_and_says_whether_it_tells_it_apart(spread, told):
    own = rows("uva", {64: 0.3, 65536: 90.0}, spread, components="vllm_0_33", lookup="vllm_0_33")
    text = "\n".join(lines_of(ask(pd.concat([three(components="tuned"), own]))))
    interval = f"{0.3 * (1 - spread):.4g} to {0.3 * (1 + spread):.4g} within its one process"
    assert f"  vLLM 0.33.0 as uva, its own way, 0.3 ({interval}) ms a layer, {told}: --engram-config" in text


def test_a_release_s_own_way_is_told_by_what_its_bundle_chooses():
    for setting in (setting for release in RELEASES.values() for setting in release.settings if setting.own):
        bundle = OmegaConf.load(ROOT / f"conf/components/{setting.own['components']}.yaml")
        chosen = {key: value for entry in bundle.defaults for key, value in entry.items()}
        assert chosen["override /lookup"] == setting.own["lookup"]
        assert (bundle.engine.name, bundle.engine.strategy) == (setting.own["components"], setting.strategy)
        assert chosen["override /strategy"] == setting.strategy


def test_sglang_gathers_on_the_cpu_for_prompts_alone():
    decode, prefill = ask(pd.concat([three()[lambda frame: frame["strategy"] != "uva"]])).choices
    assert (decode.strategy, decode.engines[SGLANG]) == ("kv_on_gpu", None)
    option = prefill.engines[SGLANG]
    assert (option.strategy, option.ms_per_layer) == ("kv_on_gpu", prefill.ms_per_layer)
    assert "SGLANG_OPT_DSV41_ENGRAM_HOST_STAGING=1" in option.flags
    for condition in ("prompts alone", "shared layout", "without ATS", "tokens are all on the host"):
        assert condition in option.differs


def test_flags_are_those_of_a_release():
    for (engine, version), release in RELEASES.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        for setting in release.settings:
            assert ("--engram-config" in setting.flags) == (engine == "vLLM"), "SGLang has none"
            assert "use_thp" not in setting.flags, "it excludes shared memory"
            assert set(setting.uses) <= set(USES)
    assert not any("kv_on_gpu" in settings_for(use)[VLLM] for use in USES), "vLLM does not gather on the CPU"
    assert "kv_on_gpu" not in settings_for(DECODE)[SGLANG]


def test_engines_without_any_option_say_so():
    advice = ask(rows("kv_on_cpu", {64: 1.0, 65536: 1.0}))
    assert advice.choices[0].engines == {VLLM: None, SGLANG: None}
    assert "vLLM 0.33.0: no option for this strategy, nor for another that fits" in "\n".join(lines_of(advice))
