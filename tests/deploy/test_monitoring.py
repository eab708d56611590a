"""Rules and dashboard: their queries are PromQL, name what servers expose, and alerts fire when they should."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import promql
from tests.deploy.manifests import CHART, DEPLOY, Manifest, of_kind
from tests.deploy.panels import Target, rows

RULES_TEST = Path(__file__).parent / "rules_test.yaml"


def queries(rendered: dict[str, list[Manifest]]) -> dict[str, list[str]]:
    """Every query that we ship, by where it stands, with the variables of Grafana filled in."""
    manifests = rendered["helm gpu-scaled"]
    dashboard = json.loads(
        next(
            m["data"]["vllm-forkjoin.json"]
            for m in of_kind(manifests, "ConfigMap")
            if "vllm-forkjoin.json" in m["data"]
        )
    )
    rules = [r["expr"] for g in of_kind(manifests, "PrometheusRule")[0]["spec"]["groups"] for r in g["rules"]]
    triggers = of_kind(manifests, "ScaledObject")[0]["spec"]["triggers"]
    adapter = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    return {
        "dashboard": [_filled(t["expr"]) for p in dashboard["panels"] for t in p.get("targets", [])]
        + [
            _filled(v["definition"].partition("(")[2].rpartition(",")[0])
            for v in dashboard["templating"]["list"]
            if "definition" in v
        ],
        "rules": rules,
        "keda": [t["metadata"]["query"] for t in triggers],
        "adapter": [r["seriesQuery"] for r in adapter]
        + [
            r["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="llm"')
            for r in adapter
        ],
    }


def _filled(query: str) -> str:
    return (
        query.replace("$__rate_interval", "1m")
        .replace("$namespace", "llm")
        .replace("$pod", ".+")
        .replace("$model", ".+")
    )


@pytest.fixture(scope="session")
def shipped(rendered) -> dict[str, list[str]]:
    return queries(rendered)


def test_there_are_queries_everywhere(shipped):
    assert {
        k: len(v) >= n for (k, v), n in zip(shipped.items(), (30, 11, 2, 4), strict=True)
    } == dict.fromkeys(shipped, True)


def test_they_name_only_metrics_that_the_code_exposes(shipped):
    known = promql.ours() | promql.vllms() | promql.HTTP | promql.ALWAYS
    named = {m for group in shipped.values() for query in group for m in promql.metrics(query)}
    assert named - known == set()
    assert {"forkjoin:requests_waiting", "vllm:kv_cache_usage_perc"} <= named


def test_every_metric_of_fork_join_is_on_the_dashboard(shipped):
    shown = {m for query in shipped["dashboard"] for m in promql.metrics(query)}
    names = {re.sub(r"_(bucket|sum|count)$", "", m) for m in promql.ours()}
    assert names == {re.sub(r"_(bucket|sum|count)$", "", m) for m in shown if m.startswith("forkjoin:")}


def test_the_dashboard_shows_servers_outside_kubernetes():
    """Their series have neither label: `.*` fits a label that is not there, `.+` and `=` do not."""
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    for name in ("namespace", "pod"):
        assert variables[name]["allValue"] == ".*"
        assert variables[name]["current"]["value"] == ["$__all"]
    targets = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]
    assert targets
    for query in targets:
        assert 'namespace=~"$namespace",pod=~"$pod"' in query
        assert 'namespace="' not in query


def test_the_docs_have_a_picture_of_every_panel_light_and_dark():
    docs = DEPLOY.parent / "docs"
    page = (docs / "observability.md").read_text()
    for row in rows():
        for suffix in ("", "-dark"):
            path = row.picture(docs, suffix)
            texts = html.unescape(path.read_text())
            assert f"({path.name}#only-{'dark' if suffix else 'light'})" in page
            assert [p.title for p in row.panels if p.title not in texts] == [], "run tests.deploy.pictures"


def test_a_series_of_a_panel_is_named_by_its_labels():
    assert Target("q", "{{kind}}: {{policy}} {{none}}").name({"kind": "a", "policy": "b"}) == "a: b"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ('sum by (pod) (rate(a:b_total{c=~"d|e",f="g_total"}[5m])) > 0.5', {"a:b_total"}),
        (
            "histogram_quantile(0.95, sum by (le) (rate(h_bucket[1m]))) and on (pod) x == 1e3",
            {"h_bucket", "x"},
        ),
        ("sum(clamp_min(sum by (pod) (a) - sum by (pod) (b{}), 0))", {"a", "b"}),
    ],
)
def test_the_metrics_of_a_query_are_found(query, named):
    assert promql.metrics(query) == named


def test_a_metric_that_is_gone_is_noticed():
    assert "vllm:gpu_cache_usage_perc" not in promql.vllms()
    assert {"vllm:kv_cache_usage_perc", "vllm:generation_tokens_total"} <= promql.vllms()
    assert promql.metrics('max(vllm:gpu_cache_usage_perc{pod="x"})') == {"vllm:gpu_cache_usage_perc"}


def _promtool(tools, *arguments):
    return subprocess.run([tools / "promtool", *map(str, arguments)], capture_output=True, text=True)


def _as_rules(path, expressions):
    rules = [{"record": f"q:{i}", "expr": e} for i, e in enumerate(expressions)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}))
    return path


def test_every_query_is_promql(tools, shipped, tmp_path):
    done = _promtool(
        tools, "check", "rules", _as_rules(tmp_path / "q.yaml", [q for g in shipped.values() for q in g])
    )
    assert done.returncode == 0, done.stderr


def test_what_is_no_promql_is_refused(tools, tmp_path):
    assert _promtool(tools, "check", "rules", _as_rules(tmp_path / "q.yaml", ["sum(rate(a[5m])"])).returncode


def test_the_alerts_fire_when_they_should_and_only_then(tools, rendered, tmp_path):
    spec = of_kind(rendered["helm gpu"], "PrometheusRule")[0]["spec"]
    rules, test = tmp_path / "rules.yaml", tmp_path / "test.yaml"
    rules.write_text(yaml.safe_dump(spec))
    checked = _promtool(tools, "check", "rules", rules)
    assert checked.returncode == 0, checked.stderr
    assert "11 rules found" in checked.stdout
    test.write_text(RULES_TEST.read_text().replace("RULES]", f"{rules}]"))
    done = _promtool(tools, "test", "rules", test)
    assert done.returncode == 0, done.stdout + done.stderr

    first = spec["groups"][0]["rules"][0]
    first["expr"] = first["expr"].replace("== 0", "== 1")
    rules.write_text(yaml.safe_dump(spec))
    assert _promtool(tools, "test", "rules", test).returncode


def test_each_alert_is_tested_and_says_what_to_do(rendered):
    rules = of_kind(rendered["helm gpu"], "PrometheusRule")[0]["spec"]["groups"][0]["rules"]
    readme = (DEPLOY / "README.md").read_text()
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["alert"] in readme
        assert 'namespace="llm",pod=~"forkjoin-vllm-forkjoin-.+"' in rule["expr"]
    # One that no series of the tests makes fire would pass them in whatever state.
    names = set(re.findall(r"[a-z]\w*:\w+|\bup\b|http_\w+", RULES_TEST.read_text()))
    assert all(promql.metrics(rule["expr"]) <= names for rule in rules)
