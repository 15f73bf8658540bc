"""Tests the internals of DeepSpeed on which the engine relies."""

import pytest
import torch
from engine_jobs import states_at
from gloo_ranks import on_gloo
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config


# With a rate for each layer there are many groups, and some have fewer elements than there are ranks.
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_every_stage_holds_the_optimizer_s_state_where_the_layout_says(tiny_config: Config, layer_decay: float) -> None:
    # After a step they are the gradient and its square: no two parameters have alike ones, so a wrong place shows.
    config, ranks = changed(tiny_config, global_batch=5, optimizer__layer_decay=layer_decay), 2
    found = on_gloo(ranks, states_at, config, (0, 1, 2, 3))
    whole = found[0][0]
    for stage in (1, 2, 3):
        held = dict.fromkeys(whole, 0)
        for rank in range(ranks):
            for name, (part, views) in found[rank][stage].items():
                held[name] += part.length
                for view, wanted in zip(views, whole[name][1], strict=True):
                    bound = 1e-5 * float(wanted.abs().max())
                    torch.testing.assert_close(view, wanted[part.offset : part.end], rtol=1e-3, atol=bound, msg=name)
        assert held == {name: part.length for name, (part, _) in whole.items()}
