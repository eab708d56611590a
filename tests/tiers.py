"""Which tests run when.

``make test`` runs the first tier: what a change is judged by while it is made. ``.ci/run`` runs that and
the second: what breaks most of the rest. ``make test-all`` runs everything, before a release and before an
issue is said to be done. Plain ``pytest`` leaves nothing out.

A test is of the first tier unless ``LATER`` names its file, or itself. So a new test runs everywhere; name it
here if it takes long, with what it costs and which test of the first tier would fail first. The costs are CPU
seconds, of processes started too: wall time says more of what else the machine does.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple


class Tier(IntEnum):
    """When a test runs; each runs those before it too."""

    FIRST = 1
    CI = 2
    ALL = 3


class Later(NamedTuple):
    """Why a test is not of the first tier."""

    tier: Tier
    reason: str


_ASYNC = "test_forks_and_joins_are_the_same_with_steps_in_flight"
_FENCE = "test_an_error_in_any_function_that_a_hook_comes_to_ends_one_family_at_most"
_MATRIX = (
    "test_fork_and_join_are_exact_on_each_runner_scheduling_and_with_tensor_parallelism",
    "test_a_stitched_join_is_what_transformers_computes_and_is_restored_when_lost",
)
_EXAMPLE = "an_example_runs_and_shows_what_it_is_there_for"

_KILLED = "test_a_server_that_logs_to_a_full_disk_starts_and_ends_when_one_of_its_processes_is_killed"

#: By file, or by the beginning of a test's id; the longest that fits a test counts.
LATER: dict[str, Later] = {
    **{
        f"tests/engine/test_fence.py::{_FENCE}[{dialect}]": Later(
            Tier.ALL, "30 s; apar, npr and threadweaver join as these do"
        )
        for dialect in ("aspd", "hpd", "medverse", "multiverse", "parallel-r1")
    },
    # Each case is a process with an engine; without them the same rules are tested with the V1 runner, sync.
    "tests/engine/test_async.py": Later(Tier.CI, "runs seven other files again, with async scheduling"),
    **{
        f"tests/engine/test_async.py::{_ASYNC}[{file}]": Later(
            Tier.ALL, "test_random and the other files have steps in flight too"
        )
        for file in (
            "test_dialects",
            "test_malformed",
            "test_pressure",
            "test_stitched_pressure",
            "test_new_weights",
        )
    },
    "tests/engine/test_matrix.py": Later(Tier.CI, "a process with an engine for each case"),
    **{
        f"tests/engine/test_matrix.py::{test}[{case}]": Later(
            Tier.ALL,
            "v1-sync is what all other tests run, and v1-async test_async; v1-async-2 and v2-async-1 have the rest",
        )
        for test in _MATRIX
        for case in ("v1-sync-1", "v1-async-1", "v1-sync-2", "v2-sync-1")
    },
    "tests/engine/test_matrix.py::test_fork_and_join_are_exact_in_two_stages_of_a_pipeline": Later(
        Tier.ALL, "120 s; test_pipeline has the scheduler of two stages, at random"
    ),
    "tests/engine/test_matrix.py::test_path_embeddings_are_what_transformers_computes_and_are_restored_when_lost": Later(
        Tier.ALL, "120 s; test_layouts has what the model is told of paths, and the stitched case the runners"
    ),
    "tests/engine/test_grouped.py::test_an_engine_answers_the_same_with_grouped_attention_and_reads_less": Later(
        Tier.ALL,
        "a process with an engine for each of five cases; unit/…/grouped has the passes without a model",
    ),
    "tests/engine/test_hybrid.py": Later(
        Tier.ALL, "an engine, and a process with one for each case; test_recurrent has states without a model"
    ),
    "tests/engine/test_offloaded_engine.py": Later(
        Tier.ALL, "a process with an engine for each case; test_offloaded has the scheduler of it, at random"
    ),
    "tests/engine/test_images.py": Later(Tier.CI, "an engine of its own, 28 s"),
    "tests/engine/test_images.py::test_forks_after_images_are_exact_on_the_v2_runner_with_steps_in_flight": Later(
        Tier.ALL, "a process with an engine, 35 s; test_matrix has that runner, and this file the V1 runner"
    ),
    "tests/engine/test_images_stitched.py": Later(
        Tier.ALL, "an engine of its own, 25 s; test_layouts has the positions that its workers offset"
    ),
    "tests/engine/test_paths.py": Later(
        Tier.ALL, "an engine of its own, 25 s; test_layouts has what the model is told of paths"
    ),
    "tests/engine/test_going_on.py": Later(
        Tier.CI, "each answer cut off after each step, 75 s; test_by_hand and test_trees have the parts"
    ),
    "tests/engine/test_new_weights.py": Later(
        Tier.CI, "120 s of engines whose weights change; test_old_kv and unit/…/test_weights have the rules"
    ),
    "tests/engine/test_trees.py": Later(
        Tier.CI, "30 s of sampling; unit/scheduler/machine compares what is recorded with each context"
    ),
    "tests/engine/test_simulated.py": Later(
        Tier.CI, "30 s of five schedulers without a model; unit/test_simulator works steps out by hand"
    ),
    "tests/engine/test_speculation.py": Later(
        Tier.CI,
        "a process with two engines for each of four cases; test_drafts has each rule without a model",
    ),
    "tests/engine/test_speculation.py::test_other_drafters_change_no_more": Later(
        Tier.ALL, "the same for nine: other drafters, and the other kind of scheduling"
    ),
    **{
        f"tests/engine/test_speculation.py::test_drafts_change_nothing_but_the_speed[{case}]": Later(
            Tier.ALL, reason
        )
        for case, reason in {
            "v2-async-draft_model-threadweaver": "185 s of Triton's interpreter; v1-async has the same drafts, "
            "and test_matrix that runner",
            "v1-sync-ngram-threadweaver": "53 s; its drafter is multiverse's too, and its dialect v1-async's",
            "v1-sync-ngram-multiverse": "85 s; test_drafts has stitched joins with drafts, without a model",
        }.items()
    },
    "tests/engine/test_speculation.py::test_drafted_threads_draw_as_others_do[ngram]": Later(
        Tier.ALL, "35 s; draft_model is judged by the same sampler, and accepts more"
    ),
    # Exactness over more prompts, sizes and shapes; a broken fork or join breaks test_exact's other tests too.
    "tests/engine/test_exact.py::test_two_hundred_greedy_answers_equal_the_client_side_reference": Later(
        Tier.ALL, "400 answers; the other tests of the file decode twelve"
    ),
    "tests/engine/test_variants.py": Later(Tier.CI, "five engines, 210 answers twice; 500 s"),
    "tests/engine/test_variants.py::test_every_block_size_and_batch_mix_is_exact": Later(
        Tier.ALL, "three of the engines; test_random has blocks and batches of all sizes"
    ),
    "tests/engine/test_variants.py::test_in_bf16_each_token_is_as_likely_as_in_a_plain_request_with_the_same_context": Later(
        Tier.ALL, "87 s on a CPU without AVX-512; the other tests of the file compare in fp32"
    ),
    "tests/engine/test_variants.py::test_threads_use_the_lora_of_their_request[drafted]": Later(
        Tier.ALL, "86 s; the same without drafts, and test_speculation without LoRA"
    ),
    **{
        f"tests/engine/test_adapters.py::test_{test}": Later(
            Tier.ALL,
            "a process with an engine for each of eight cases, on V2 minutes, and one more; others need none",
        )
        for test in (
            "families_with_several_adapters_and_without_one_in_one_batch_are_each_as_it_is_alone",
            "answers_of_the_model_with_two_adapters_and_without_one_are_those_of_a_client_each",
        )
    },
    "tests/engine/test_shapes.py": Later(
        Tier.ALL,
        "a dozen processes with up to ten engines on models of two layers, on V2 minutes each; six cases run before",
    ),
    **{
        f"tests/engine/test_shapes.py::test_a_family_on_a_model_of_this_shape_is_exact_or_refused[v1-sync-{case}]": Later(
            Tier.CI, "5 s, and 12 s for each of two processes; test_layouts has what is copied in fp8"
        )
        for case in (
            *(f"{shape}-reprefill" for shape in ("llama", "gemma", "fp8_kv", "moe", "gdn")),
            "fp8_kv-stitch",
        )
    },
    "tests/engine/test_cpu_kernels.py": Later(
        Tier.ALL, "a fault of vLLM's alone, which test_shapes goes round there"
    ),
    "tests/engine/test_layouts.py": Later(
        Tier.CI, "every layout of KV that GPUs have; the CPU's is in test_stitched"
    ),
    "tests/engine/test_stitched_reference.py": Later(Tier.CI, "tests the tests' own reference"),
    "tests/engine/test_stitched_pressure.py": Later(
        Tier.CI, "test_random puts stitched joins under pressure too"
    ),
    "tests/engine/test_pressure.py::test_under_kv_and_slot_pressure_the_answers_are_exact[joins_ahead]": Later(
        Tier.CI, "50 s; the first tier has the case of joins at once"
    ),
    "tests/engine/test_pressure.py::test_families_that_give_way_at_any_step_have_the_logprobs_of_undisturbed_ones": Later(
        Tier.ALL, "90 s; test_random compares those of a stand-in for a model"
    ),
    "tests/reference_clients/test_stock.py": Later(
        Tier.ALL, "stock vllm serve and an engine; test_scripted has the clients on a model that is a script"
    ),
    "tests/engine/test_figures.py": Later(
        Tier.CI, "ten schedulers; tooling/test_docs_site has the figures that are drawn"
    ),
    "tests/engine/test_own_policies.py": Later(
        Tier.ALL, "two engines, 40 s; test_victims, test_admitting and test_votes have policies of one's own"
    ),
    "tests/engine/test_overview.py": Later(
        Tier.CI, "a dozen schedulers; unit/server/http/test_families has what is made of their answers"
    ),
    "tests/engine/test_cancelling.py::test_an_answer_of_the_model_is_what_its_transcript_with_the_cut_thread_makes_it": Later(
        Tier.CI, "six answers of the model, each with a reference; the other tests of the file need no model"
    ),
    "tests/unit/server/request/test_grammar_trials.py": Later(
        Tier.CI, "processes that import xgrammar; test_hostile_bodies has a grammar that takes too long"
    ),
    "tests/unit/scheduler/vllm_seam/test_vital.py": Later(
        Tier.CI, "a dozen processes that import vLLM; test_liveness kills the real ones"
    ),
    "tests/bench/test_waiting_cost.py": Later(
        Tier.ALL, "20 s of a scheduler, for a figure that is printed only"
    ),
    "tests/bench/test_loads.py::test_one_run_of_a_pair_loads_all_full_blocks_and_the_other_computes_them": Later(
        Tier.CI, "an engine, 15 s; engine/test_offloaded has loads without a model"
    ),
    "tests/bench/test_votes.py::test_votes_are_run_in_every_way_and_the_lossless_ones_answer_as_all": Later(
        Tier.CI, "an engine, 25 s; engine/test_votes has the same rules"
    ),
    # Servers of their own; test_api and its neighbours share one.
    "tests/server/test_fence.py": Later(
        Tier.CI, "a server whose joins raise; engine/test_fence raises everywhere"
    ),
    "tests/server/test_client.py": Later(
        Tier.CI, "a dozen answers and terminals on the shared server; tests/client has each rule without one"
    ),
    "tests/server/test_agents.py": Later(
        Tier.CI, "six answers on the shared server; unit/server/answer/test_agents has each event and item"
    ),
    "tests/server/test_instruct.py": Later(
        Tier.ALL,
        "a server on a model of 135 M parameters, 400 s on a CPU with AVX2 only; test_explicit forks as it does",
    ),
    "tests/server/test_way.py::test_each_file_of_the_path_runs_for_a_request": Later(
        Tier.ALL, "a server that traces all functions; unit/docs has that each file is there"
    ),
    "tests/server/test_verify.py": Later(
        Tier.ALL, "two engines and transformers, 60 s; unit/server/verify has what is made of their answers"
    ),
    "tests/server/test_structured.py": Later(
        Tier.CI, "a server with a reasoning parser; test_explicit has grammars too"
    ),
    "tests/server/test_cancelling.py": Later(
        Tier.CI, "eight answers on the shared server; engine/test_cancelling has each rule without one"
    ),
    "tests/server/test_keys.py": Later(Tier.CI, "two API servers with a file of keys"),
    "tests/server/test_adapters.py": Later(
        Tier.ALL,
        "a server with adapters; engine/test_adapters has their batches, and test_api a server's threads",
    ),
    "tests/server/test_liveness.py": Later(Tier.CI, "servers, most of which are killed"),
    **{
        f"tests/server/test_liveness.py::{_KILLED}[{process}]": Later(
            Tier.ALL, "five processes each, 52 s; the same for an engine core"
        )
        for process in ("one of two workers", "coordinator of two engines", "one of two API servers")
    },
    "tests/browser/test_playground.py": Later(
        Tier.CI,
        "a server and a browser; test_playground of the unit tests has the files and how they are served",
    ),
    "tests/browser/test_docs_site.py": Later(
        Tier.CI, "builds the site and starts a browser; tooling/test_docs_site has the files that it needs"
    ),
    "tests/tooling/test_playground_build.py": Later(
        Tier.ALL, "installs a bundler from npm; hashes say the same"
    ),
    "tests/server/test_client_ts.py": Later(
        Tier.CI, "installs a compiler from npm; test_npm reads streams too"
    ),
    "tests/server/test_examples.py": Later(
        Tier.ALL,
        "twelve processes, and frameworks from PyPI and npm; test_client, test_npm and test_client_ts ask, too",
    ),
    **{
        f"tests/server/test_examples.py::test_{test}": Later(Tier.CI, "needs no packages but the server's")
        for test in (
            f"{_EXAMPLE}[offline_batch.py]",
            f"{_EXAMPLE}[with_curl.sh]",
            "every_file_is_run_and_listed",
        )
    },
    "tests/server/test_trainers.py": Later(
        Tier.ALL, "three trainers from PyPI, one of which trains; client/test_tree_rows has what rows are"
    ),
    "tests/server/test_rl_on_trees.py::test_the_notebook_runs_and_the_critical_path_falls_while_answers_stay_right": Later(
        Tier.ALL, "an engine that is trained for minutes; training/test_rl_on_trees has the parts"
    ),
    "tests/server/test_overload.py": Later(Tier.CI, "a server of its own, with more than it can take"),
    "tests/server/test_lifecycle.py": Later(Tier.CI, "four servers"),
    "tests/server/test_lifecycle.py::test_no_api_server_hangs_up_while_another_has_requests_in_flight": Later(
        Tier.ALL,
        "a server of four processes, 57 s; unit/test_lifecycle has two of them share what is in flight",
    ),
    "tests/server/test_observability.py": Later(Tier.CI, "a server that exports traces"),
    "tests/server/test_observability_scaled.py": Later(
        Tier.ALL, "two API servers that export traces; test_observability has one"
    ),
    "tests/server/test_reasoning.py": Later(
        Tier.ALL,
        "a server with a reasoning parser, 120 s; test_structured has one, engine/test_budget the budgets",
    ),
    "tests/server/test_new_weights.py": Later(
        Tier.ALL, "a server and answers that take their time, 100 s; engine/test_new_weights has the policies"
    ),
    "tests/server/test_groups.py": Later(
        Tier.ALL, "a server of two engines and two API servers, 90 s; unit/…/test_placement has the choice"
    ),
    "tests/server/test_parallel.py": Later(
        Tier.ALL, "servers of several engines and API servers; test_liveness has one of two engines"
    ),
    "tests/server/test_offloaded_server.py": Later(
        Tier.ALL, "two servers; engine/test_offloaded has the scheduler of them, at random"
    ),
    "tests/server/test_replicas.py": Later(
        Tier.ALL,
        "two servers behind a router, 150 s; test_kept and test_kuberay_app have what one of them does",
    ),
    "tests/server/test_stitched_server.py": Later(Tier.CI, "a server with stitched joins"),
    "tests/server/test_trees.py": Later(
        Tier.ALL,
        "a server and an engine, 270 s; tests/engine/test_trees.py and unit/server/answer fail first",
    ),
    "tests/server/test_usage.py": Later(
        Tier.CI, "a server of its own, and forty random requests, each twice"
    ),
    "tests/server/test_batch_restart.py": Later(
        Tier.ALL, "three servers of its own; test_batch kills the run, tests/client/batch has each rule"
    ),
    "tests/server/test_start.py": Later(Tier.CI, "seven starts of vLLM that are refused"),
    "tests/server/test_doctor.py": Later(Tier.CI, "four starts of vLLM's configuration"),
    "tests/soak/test_primitives.py": Later(Tier.CI, "two processes with vLLM's kernels; 20 s"),
    "tests/soak/test_soak.py": Later(
        Tier.ALL, "two minutes of load on a server of its own; test_usage and test_overload have shorter ones"
    ),
    "tests/bench/test_smoke.py": Later(
        Tier.ALL, "a server, an engine and a load; the other tests of the folder have each part of it"
    ),
    "tests/deploy/test_values.py": Later(
        Tier.CI, "renders the chart seventeen times; test_schemas has the values that we ship"
    ),
    "tests/deploy/test_ray.py": Later(
        Tier.ALL, "installs Ray and starts four servers; test_kuberay_app has each rule without Ray"
    ),
    "tests/deploy/test_live_metrics.py": Later(Tier.CI, "a server and a Prometheus that scrapes it"),
    "tests/tooling/test_bare_debian.py": Later(
        Tier.ALL, "installs a Debian and all of the closure twice; test_install has what is refused before"
    ),
    "tests/tooling/test_smollm2.py": Later(Tier.CI, "converts a model of 135 M parameters"),
    "tests/tooling/test_wheel.py": Later(Tier.CI, "builds and installs the wheel"),
    "tests/tooling/test_tiers.py::test_every_test_of_the_repository_is_of_a_tier": Later(
        Tier.CI, "collects all tests again, in a process of its own"
    ),
}


def tier_of(test_id: str) -> Tier:
    """The tier of a test, by its id: ``tests/engine/test_x.py::test_y[z]``."""
    fitting = [key for key in LATER if _names(key, test_id)]
    return LATER[max(fitting, key=len)].tier if fitting else Tier.FIRST


def unused(test_ids: Iterable[str]) -> list[str]:
    """The keys of ``LATER`` that fit none of these tests."""
    ids = list(test_ids)
    return [key for key in LATER if not any(_names(key, test_id) for test_id in ids)]


def _names(key: str, test_id: str) -> bool:
    # A file, a test with all its cases, or one case: "test_a" doesn't name "test_ab".
    rest = test_id.removeprefix(key)
    return rest != test_id and (not rest or rest[0] in ":[" or key.endswith("/"))
