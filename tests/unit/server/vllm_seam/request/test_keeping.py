"""Which models' answers can be kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.options import RequestOptions
from forkjoin_server.vllm_seam.request.keeping import check_keeps

KEEPS = RequestOptions(keep=60)


def config(*, caches=True, hybrid=False, attention_free=False):
    model = SimpleNamespace(is_hybrid=hybrid, is_attention_free=attention_free)
    return SimpleNamespace(cache_config=SimpleNamespace(enable_prefix_caching=caches), model_config=model)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"caches": False}, "--no-enable-prefix-caching"),
        ({"hybrid": True}, "one state of the whole sequence"),
        ({"attention_free": True}, "one state of the whole sequence"),
    ],
)
def test_where_nothing_can_be_found_again_keep_is_refused(what, message):
    with pytest.raises(BadRequestOptions, match=message):
        check_keeps(KEEPS, config(**what))
    check_keeps(RequestOptions(), config(**what))


def test_elsewhere_it_is_not():
    check_keeps(KEEPS, config())
    check_keeps(KEEPS, None)
