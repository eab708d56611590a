"""Random families on the scheduler without a model: at every step, charged = generated <= the budget."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.compiled import check_and_compile
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import KEY
from forkjoin_server.request.handover import width_in_answers
from tests.engine import renamed
from tests.engine.books import Books
from tests.engine.random_drive import Drive, Seen
from tests.tiers import Tier

pytestmark = pytest.mark.engine

NUM_SEEDS = {Tier.FIRST: 2, Tier.CI: 12, Tier.ALL: 40}
MIXED, PRESSURE = "mixed", "pressure"


class SeenByBooks(Seen):
    """What the front end is told, the books too."""

    def __init__(self, books: Books) -> None:
        super().__init__()
        self._books = books

    def note(self, output):
        self._books.take(output)
        super().note(output)


class Counted(Drive):
    """A run whose books are kept from its first step on."""

    def keep(self, books: Books) -> Counted:
        self.books = books
        self.seen = SeenByBooks(books)
        return self

    def _add(self):
        super()._add()
        request = next(reversed(self._added.values()))
        params = request.sampling_params
        settings, asked = self._scheduler._core.settings, (params.extra_args or {}).get(KEY, {})
        try:
            options = check_and_compile(asked, settings, self._tokenizer.encode)
        except BadRequestOptions:
            options = CompiledOptions()  # the server answers these with a 400
        limits = options.limits(settings.limits)
        most = params.max_tokens * width_in_answers(options, settings)
        self.books.add(request.request_id, min(most, limits.max_total_tokens or most))

    def _step(self):
        has_run = super()._step()
        self.books.check_step(self._scheduler)
        return has_run

    def check(self) -> int:
        """Run, and check the books at the end; how many families there were."""
        self.run()
        return self.books.check_end(self._aborted)


@pytest.mark.parametrize("kind", [MIXED, PRESSURE])
@pytest.mark.parametrize("name", renamed.NO_VARIANTS)
def test_every_token_is_charged_to_one_budget_that_binds(model_of, tier, name, kind):
    num_families = 0
    for seed in range(NUM_SEEDS[tier]):
        with pytest.MonkeyPatch.context() as monkeypatch:
            books = Books(monkeypatch)
            drive = Counted.named(name, f"{kind}", 1000 + seed, model_of(name)).keep(books)
            try:
                num_families += drive.check()
            except Exception as error:
                error.add_note(f'Counted.named("{name}", "{kind}", {1000 + seed}, …), {drive.setup}')
                raise
    assert num_families, "none of them forked"
