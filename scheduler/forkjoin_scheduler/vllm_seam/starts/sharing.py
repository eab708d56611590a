"""The queue of requests that have not begun, shared out between API keys: see ``policy/fair_queue.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count

from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.policy.fair_queue import FairQueue, Ticket
from forkjoin_scheduler.request.visits import TENANT

#: Set on a request: its number in the queue, and what its tenant was charged for its start.
_NUMBER, _CHARGED = "_forkjoin_number", "_forkjoin_charged"
#: A token that is generated costs a step, in which thousands of a prompt's are computed. (As in the paper.)
GENERATED = 2


def cost(num_prompt_tokens: float, num_generated: float) -> float:
    """What a request costs, in tokens of prompts."""
    return num_prompt_tokens + GENERATED * num_generated


class SharedQueue(RequestQueue):
    """vLLM's queue of waiting requests. Popping one charges its tenant; putting it back pays that back.

    So the scan of one step is fair, too: who had a request admitted is asked last for the next.
    """

    def __init__(self, policy: SchedulingPolicy, cost: Callable[[Request], float]) -> None:
        self._by_priority = policy == SchedulingPolicy.PRIORITY
        self._cost = cost
        self._queue: FairQueue[Request] = FairQueue()
        self._numbers = count()

    def _ticket(self, request: Request) -> Ticket[Request]:
        if (number := getattr(request, _NUMBER, None)) is None:
            number = next(self._numbers)
            setattr(request, _NUMBER, number)
        urgency = request.priority if self._by_priority else 0
        return Ticket(urgency, number, tenant_of(request)[0], request)

    def add_request(self, request: Request) -> None:
        """Let ``request`` wait after its tenant's others."""
        self._queue.add(self._ticket(request))

    def peek_request(self) -> Request:
        """Whose turn it is. Raises IndexError if nobody waits."""
        return self._queue.first().item

    def pop_request(self) -> Request:
        """Take out whose turn it is. Raises IndexError if nobody waits."""
        ticket = self._queue.first()
        cost = self._cost(ticket.item)
        setattr(ticket.item, _CHARGED, cost)
        self._queue.take(ticket, cost / tenant_of(ticket.item)[1])
        return ticket.item

    def prepend_request(self, request: Request) -> None:
        """``request`` has not started after all, or was preempted: it stands where it stood."""
        charged = getattr(request, _CHARGED, None)
        if charged is None or request.status == RequestStatus.PREEMPTED:
            self.add_request(request)
        else:
            delattr(request, _CHARGED)
            self._queue.put_back(self._ticket(request), charged / tenant_of(request)[1])

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """The same for several."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        """Take ``request`` out. Raises ValueError if it does not wait here."""
        self._queue.remove(self._ticket(request))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take those of ``requests`` out that wait here."""
        self._queue.remove_all(set(requests))

    def ended(self, request: Request, cost: float) -> None:
        """``request`` has cost ``cost``, which its tenant is charged in the place of what was expected."""
        if (charged := getattr(request, _CHARGED, None)) is not None:
            delattr(request, _CHARGED)
            tenant, weight = tenant_of(request)
            self._queue.charge(tenant, (cost - charged) / weight)

    def __bool__(self) -> bool:
        return self._queue.num > 0

    def __len__(self) -> int:
        return self._queue.num

    def __iter__(self) -> Iterator[Request]:
        return (ticket.item for ticket in self._queue)


def max_kept_tokens_of(request: Request) -> float:
    """Tokens of answers that the tenant of ``request`` may have kept in an engine."""
    params = request.sampling_params
    told = (params.extra_args or {}).get(TENANT) if params is not None else None
    most = told.get("max_kept_tokens") if told else None
    return float("inf") if most is None else most


def tenant_of(request: Request) -> tuple[str, float]:
    """Whose ``request`` is and the weight of that tenant; all that name none are one."""
    params = request.sampling_params
    told = (params.extra_args or {}).get(TENANT) if params is not None else None
    return (told["id"], told["weight"]) if told else ("", 1.0)
