"""KV of weights that are no more, on the real scheduler without a model: who loses it, and who ends."""

from __future__ import annotations

import pytest
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from forkjoin_bench.vllm_seam.offloading import offloading
from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_scheduler.vllm_seam.cache import kv
from tests.engine.fed import BLOCK_SIZE, Scripted

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("clock")]


class Updated(Scripted):
    """A scheduler with the family ``r0``, whose threads write."""

    def __init__(self, **options):
        super().__init__(num_blocks=80, **options)
        self.new_weights = self.scheduler.new_weights
        self.root = self.add("r0", 40, self.author.fork([30, 30]), 2)
        self.step_until(lambda: len(self.scheduler._core.threads) == 2)

    def write(self):
        requests = self.scheduler.requests
        self.step_until(lambda: all(requests[i].num_output_tokens > 2 for i in self.scheduler._core.threads))

    def holders(self):
        requests = self.scheduler.requests.values()
        return [r.request_id for r in requests if kv.has_blocks(self.scheduler.kv_cache_manager, r)]

    def num_hashed(self):
        return sum(b.block_hash is not None for b in self.scheduler.kv_cache_manager.block_pool.blocks)

    def load(self):
        """A request whose KV a connector loads, and has not loaded yet."""
        scheduler = self.scheduler
        request = self.add("loading", 2)
        scheduler.waiting.remove_request(request)
        assert scheduler.kv_cache_manager.allocate_slots(request, 2 * BLOCK_SIZE) is not None
        request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
        scheduler._enqueue_waiting_request(request)
        return request

    def ends(self, name):
        return [o.finish_reason for o in self.outputs[name] if o.finished]


@pytest.fixture
def errors(monkeypatch):
    """Where errors were contained."""
    from forkjoin_scheduler.vllm_seam import fence

    logged = []
    monkeypatch.setattr(fence.logger, "error", lambda message, *args, exc_info: logged.append(args))
    return logged


def test_without_a_connector_what_goes_on_keeps_its_kv():
    fed = Updated()
    fed.write()
    fed.new_weights.take()
    assert {"r0#0", "r0#1"} <= {*fed.holders()}
    assert not fed.num_hashed()
    fed.step()
    assert not fed.num_hashed()


def test_beside_a_connector_nobody_keeps_kv_that_it_would_store_once_more():
    fed = Updated(connects=offloading(1))
    fed.write()
    fed.new_weights.take()
    assert fed.holders() == []
    assert fed.new_weights.may_be_found(fed.root)
    assert not fed.root.is_finished()


def test_what_a_connector_loads_ends_for_its_kv_can_not_be_taken_back():
    fed = Updated(connects=offloading(1))
    fed.write()
    loading = fed.load()
    fed.new_weights.take()
    assert loading.status == RequestStatus.FINISHED_ABORTED
    assert fed.holders() == ["loading"], "until its load has ended"
    assert not fed.root.is_finished()
    fed.step()
    assert fed.ends("loading") == [FinishReason.ABORT]


def test_beside_files_of_a_connector_the_weights_may_not_change(tmp_path):
    Updated(connects=offloading(1)).new_weights.check()
    with pytest.raises(UnsupportedEngine, match=r"secondary_tiers .* another root_dir"):
        Updated(connects=offloading(1, folder=str(tmp_path))).new_weights.check()


def test_a_family_that_has_joined_and_lost_its_blocks_has_begun():
    fed = Updated(on_new_weights="abort")
    fed.step_until(lambda: not fed.scheduler._core.threads)
    fed.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert fed.holders() == []
    assert not any(request.num_output_tokens for request in fed.scheduler.requests.values())
    fed.new_weights.take()
    fed.step()
    assert fed.ends("r0") == [FinishReason.ABORT]
    assert not fed.scheduler.requests


def test_ends_are_told_whatever_fails_behind_them():
    fed = Updated(on_new_weights="abort")
    fed.scheduler.reset_connector_cache = lambda: False
    with pytest.raises(RuntimeError, match="expected the KV connector to forget"):
        fed.new_weights.take()
    fed.step()
    assert fed.ends("r0") == [FinishReason.ABORT]


def test_what_fails_to_be_forgotten_reaches_the_caller(monkeypatch):
    def fail(manager):
        raise RuntimeError("vLLM's own")

    fed = Updated()
    monkeypatch.setattr(kv, "forget_hashes", fail)
    with pytest.raises(RuntimeError, match="vLLM's own"):
        fed.new_weights.take()


def test_where_nobody_can_say_who_has_old_kv_all_have(monkeypatch, errors):
    def fail():
        raise RuntimeError("a fault for a test")

    fed = Updated()
    fed.write()
    waiting = fed.add("r1", 2)
    monkeypatch.setattr(fed.new_weights, "_holding", fail)
    fed.new_weights.take()
    assert errors == [("weights",)]
    assert not fed.num_hashed()
    assert not fed.new_weights.may_be_found(fed.root)
    assert not fed.new_weights.may_be_found(waiting)


def test_a_reset_that_vllm_refuses_leaves_nobody_without_blocks_marked_and_all_go_on():
    fed = Updated(connects=offloading(1))
    fed.write()
    loading = fed.load()
    fed.new_weights._has_old_kv = {"r0", "loading"}
    with pytest.raises(RuntimeError, match="Failed to reset KV cache"):
        fed.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert fed.new_weights.may_be_found(fed.root)
    assert not fed.new_weights.may_be_found(loading)
