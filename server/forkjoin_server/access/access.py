"""What the front end knows of who may ask: read when it starts, and again at SIGHUP."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.policy.backlog import Expected, Tenant, shared
from forkjoin_scheduler.request.visits import BACKLOG
from forkjoin_scheduler.settings import KEY
from forkjoin_server.access import sighup
from forkjoin_server.access.guard import Guard
from forkjoin_server.access.keys import Key, KeyRing, read, unnamed
from forkjoin_server.access.settings import AccessSettings, OverloadSettings
from forkjoin_server.asgi import Message
from forkjoin_server.flag_values import given
from forkjoin_server.playground.serving import ROOT, Playground, playground_of

LOG = logging.getLogger("vllm.forkjoin.server")


class Access:
    """``digests`` are those of the keys that vLLM was given. The file is read when first asked for."""

    def __init__(self, digests: Sequence[bytes]) -> None:
        self._unnamed = unnamed(digests)
        self._guard: Guard | None = None
        #: None where there is none, or nobody has asked yet.
        self.playground: Playground | None = None
        self.settings = AccessSettings()
        self._num_front_ends = 1
        #: Whether the engine shares itself out between keys. Without a dialect vLLM's own scheduler does not.
        self._are_weighed = True

    def guard(self, scope: Message) -> Guard:
        """Who decides. Raises UsageError while the file can't be read, so that nobody passes."""
        if self._guard is None:
            args = getattr(getattr(scope.get("app"), "state", None), "args", None)
            if args is not None:
                self.settings = given(args, AccessSettings)
                self._are_weighed = bool(args.additional_config.get(KEY))
                self._num_front_ends = getattr(args, "api_server_count", None) or 1
                BACKLOG.bounds = shared(given(args, OverloadSettings).bounds, self._num_front_ends)
                BACKLOG.num_front_ends = self._num_front_ends
                BACKLOG.expected = Expected() if self._are_weighed else Expected(threads=1)
            self.playground = playground_of(scope.get("app"))
            self._guard = Guard(KeyRing(self._keys()), self._open_paths())
        return self._guard

    def tenant(self, scope: Message) -> Tenant:
        """Whose request ``scope`` is. Raises NotAllowed if it needs a key and has none."""
        guard = self.guard(scope)
        key = guard.key_of(scope)
        if key is None:  # there are no keys, or the operator has opened the route
            return Tenant(sees_all=not guard.ring.keys)
        is_apart = self.settings.cache_salt == "per-key"
        return key.tenant(self._num_front_ends, has_own_cache=is_apart)

    def start(self, scope: Message) -> None:
        """Read the keys, and read them again at each SIGHUP. Raises UsageError if they can't be read."""
        guard = self.guard(scope)
        if self.settings.api_key_file is not None and threading.current_thread() is threading.main_thread():
            sighup.listen(lambda: self._reload(guard))

    def _open_paths(self) -> frozenset[str]:
        """The paths that need no key. All files of the playground are open where its page is."""
        paths = self.settings.open_paths
        return paths | self.playground.paths if self.playground is not None and ROOT in paths else paths

    def _keys(self) -> list[Key]:
        path = self.settings.api_key_file
        of_file = [] if path is None else read(path, are_weighed=self._are_weighed)
        return [*self._unnamed, *of_file]

    def _reload(self, guard: Guard) -> None:
        try:
            guard.ring = KeyRing(self._keys())
        except UsageError as error:
            LOG.error("SIGHUP: the API keys stay as they were: %s", error)  # noqa: TRY400 - one sentence
        else:
            LOG.info("SIGHUP: read %d API keys", len(guard.ring.keys))
