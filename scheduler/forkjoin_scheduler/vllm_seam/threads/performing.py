"""What machines want done (``machine/effects.py``) is done here, each effect in one place."""

from __future__ import annotations

from vllm.v1.request import RequestStatus

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.machine import effects, ending
from forkjoin_scheduler.machine.effects import Effect, Effects, How
from forkjoin_scheduler.publish.recording import CONTEXTS, branch_of
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.ahead import EagerJoinPrefill
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED, Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues
from forkjoin_scheduler.vllm_seam.starts.answers import Answers
from forkjoin_scheduler.vllm_seam.threads.keeping import Keeping
from forkjoin_scheduler.vllm_seam.threads.resuming import Resuming
from forkjoin_scheduler.vllm_seam.threads.starting import Starting
from forkjoin_scheduler.vllm_seam.threads.tails import Tails

#: The effects after which a branch writes what it had written there in an earlier answer.
GOING_ON = (effects.Start, effects.Resume)
_STATUS = {How.STOPPED: STOPPED, How.CAPPED: CAPPED}


class Performing:
    """Performs effects on vLLM's requests and KV blocks. Keeps nothing."""

    def __init__(
        self,
        core: Core,
        answers: Answers,
        placing: Placing,
        jobs: KVJobs,
        ahead: EagerJoinPrefill,
        keeping: Keeping,
        resuming: Resuming,
        starting: Starting,
        tails: Tails,
    ) -> None:
        self._core = core
        self._answers = answers
        self._placing = placing
        self._jobs = jobs
        self._ahead = ahead
        self._keeping = keeping
        self._resuming = resuming
        self._starting = starting
        self._tails = tails

    def perform(self, live: LiveFamily, wanted: Effects) -> None:
        """Perform what is ``wanted``, each effect before the machine says the next."""
        for effect in wanted:
            getattr(self, _PERFORMED_BY[type(effect)])(live, effect)
            if live.recording is not None and isinstance(effect, CONTEXTS):
                params = self._core.request_of(branch_of(effect)).sampling_params
                live.recording.note(live, effect, None if params is None else params.seed)
            if live.given and isinstance(effect, GOING_ON):
                live.to_give.append(branch_of(effect))

    def closed(self, live: LiveFamily, thread: Branch) -> None:
        """All KV of ``thread``, which has ended, is there: its machine goes on."""
        self.perform(live, ending.closed(live, thread))

    def drop_family(self, live: LiveFamily, threads: list[Branch]) -> list[str]:
        """Let go of all that a family holds; returns the ids of the requests of ``threads``, to be freed."""
        self._jobs.drop(live)
        kv.release(self._core.kv_cache_manager, *live.take_held(list(live.held)))
        self._placing.unstitch(live.family.request_id)
        self._placing.ended(live.family.request_id)
        return self._drop(live, threads)

    def _drop(self, live: LiveFamily, threads: list[Branch]) -> list[str]:
        """Let go of what ``threads`` hold, and theirs that had ended before them; returns their ids."""
        held = live.take_held([t for thread in threads for t in thread.subtree()])
        kv.release(self._core.kv_cache_manager, *held)
        for thread in threads:
            self._core.threads.pop(thread.request_id, None)
            self._placing.ended(thread.request_id)
            self._placing.unstitch(thread.request_id)
        return [thread.request_id for thread in threads]

    # ---- one effect each -------------------------------------------------------------------

    def park(self, live: LiveFamily, effect: effects.Park) -> None:
        queues.park(self._core.scheduler, self._core.request_of(effect.branch))

    def start(self, live: LiveFamily, effect: effects.Start) -> None:
        self._starting.start(live, effect.thread, self._core.request_of(effect.thread.parent))

    def share_tail(self, live: LiveFamily, effect: effects.ShareTail) -> None:
        self._tails.share(live, effect.branch)

    def sample_again(self, live: LiveFamily, effect: effects.SampleAgain) -> None:
        self._resuming.sample_again(self._core.request_of(effect.branch))

    def will_not_join(self, live: LiveFamily, effect: effects.WillNotJoin) -> None:
        self._answers.did_not_join(self._core.request_of(effect.branch))

    def swap(self, live: LiveFamily, effect: effects.Swap) -> None:
        self._resuming.swap(live, effect)

    def stop(self, live: LiveFamily, effect: effects.Stop) -> None:
        self._core.scheduler.end_requests([effect.thread.request_id], STOPPED)

    def keep(self, live: LiveFamily, effect: effects.Keep) -> None:
        thread = effect.thread
        self._core.threads.pop(thread.request_id, None)
        self._placing.ended(thread.request_id)
        self._keeping.keep(live, thread, may_lack_kv=effect.may_lack_kv, closed=self.closed)

    def forget(self, live: LiveFamily, effect: effects.Forget) -> None:
        ids = self._drop(live, effect.threads)
        self._core.scheduler.end_requests(ids, RequestStatus.FINISHED_ABORTED)

    def prefill_finished_threads(self, live: LiveFamily, effect: effects.PrefillFinishedThreads) -> None:
        self._ahead.prefill(live, effect.branch)

    def resume(self, live: LiveFamily, effect: effects.Resume) -> None:
        self._resuming.resume(live, effect)

    def end_joined(self, live: LiveFamily, effect: effects.EndJoined) -> None:
        branch = effect.branch
        if held := self._ahead.prefilled(live, branch):
            kv.release(self._core.kv_cache_manager, held)
        kv.release(self._core.kv_cache_manager, *live.take_held(branch.waits_for))
        self._core.scheduler.end_requests([branch.request_id], _STATUS[effect.how])

    def end_family(self, live: LiveFamily, effect: effects.EndFamily) -> None:
        ids = [live.family.request_id, *self.drop_family(live, effect.threads)]
        self._core.scheduler.end_requests(ids, _STATUS[effect.how])


#: Which method performs which effect.
_PERFORMED_BY: dict[type[Effect], str] = {
    effects.Park: "park",
    effects.Start: "start",
    effects.ShareTail: "share_tail",
    effects.SampleAgain: "sample_again",
    effects.WillNotJoin: "will_not_join",
    effects.Swap: "swap",
    effects.Stop: "stop",
    effects.Keep: "keep",
    effects.Forget: "forget",
    effects.PrefillFinishedThreads: "prefill_finished_threads",
    effects.Resume: "resume",
    effects.EndJoined: "end_joined",
    effects.EndFamily: "end_family",
}
