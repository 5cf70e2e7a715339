"""A strategy of its own for a layer of a model's step."""

import pytest

from engram_exp.config.mixed import strategy_in_words


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["strategy=uva"], "uva"),
        (["strategy=uva", "strategies.14=uva"], "uva"),
        (["strategy=uva", "strategies.14=kv_on_gpu", "strategies.1=uva"], "uva strategies.14=kv_on_gpu"),
        # By its name it is the run's, but the run's table has moved:
        (["strategy=device", "strategy.table=host", "strategies.14=device"], "device strategies.14=device"),
    ],
)
def test_layers_are_told_whose_strategy_is_another_than_the_run_s(configure, asked, told):
    config = configure("decoder=tiny", *asked)
    assert strategy_in_words(asked[0].partition("=")[2], config) == told
