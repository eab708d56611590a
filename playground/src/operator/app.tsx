/** The page for operators: what runs, what waits, and what forking gives. It only reads. */

import { useState } from "preact/hooks";
import { keep, kept } from "../kept";
import { KeyDialog } from "../key-dialog";
import { type Engine, parseFamilies } from "./families";
import { EngineFamilies } from "./families-table";
import { byLabel, greatest, parse, quantile, rate, type Reading, sum } from "./metrics";
import { EVERY_MS, usePolled } from "./polling";
import { Sparkline } from "./sparkline";

/** Five minutes. */
const KEPT = 150;
/** Latencies are of the last half minute. */
const WINDOW = 15;

const whole = (v: number): string => Math.round(v).toLocaleString("en");
const perSecond = (v: number): string => `${v < 10 ? v.toFixed(1) : whole(v)}/s`;
const percent = (v: number): string => `${(v * 100).toFixed(v < 0.1 ? 1 : 0)} %`;
const times = (v: number): string => `${v.toFixed(2)}×`;
const duration = (s: number): string => (s < 1 ? `${whole(s * 1000)} ms` : `${s.toFixed(1)} s`);

export function Operator() {
  const [readings, setReadings] = useState<Reading[]>([]);
  const [engines, setEngines] = useState<Engine[]>([]);
  const [apiKey, setApiKey] = useState<string | null>(() => kept<string>("key"));
  const [asksKey, setAsksKey] = useState(false);
  const { trouble } = usePolled("../metrics", apiKey, (text) => setReadings((all) => [...all.slice(1 - KEPT), parse(text, performance.now())]));
  const families = usePolled("../v1/forkjoin/families", apiKey, (text) => setEngines(parseFamilies(text)));

  const last = readings.at(-1);
  const gauge = (name: string): (number | null)[] => readings.map((r) => sum(r, name));
  const overTime = (of: (before: Reading, after: Reading) => number | null, window = 1): (number | null)[] =>
    readings.slice(1).map((after, i) => of(readings[Math.max(0, i + 1 - window)] as Reading, after));
  const rates = (name: string): (number | null)[] => overTime((a, b) => rate(a, b, name));
  const latency = (name: string, share: number): (number | null)[] => overTime((a, b) => quantile(a, b, name, share), WINDOW);
  const gain = overTime((a, b) => {
    const [all, critical] = [rate(a, b, "forkjoin:generated_tokens_total"), rate(a, b, "forkjoin:critical_path_tokens_total")];
    return all && critical ? all / critical : null;
  }, WINDOW);

  return (
    <>
      <header class="bar">
        <h1>
          forkjoin <span>operator</span>
        </h1>
        <nav aria-label="Pages">
          <a href="./">Playground</a>
        </nav>
        <p class={`server ${trouble === null ? "well" : "trouble"}`} role="status">
          <span class="dot" /> {trouble ?? `Read every ${EVERY_MS / 1000} s, the last five minutes`}
        </p>
        <button type="button" class="quiet" onClick={() => setAsksKey(true)}>
          {apiKey === null ? "API key" : "API key ✓"}
        </button>
      </header>
      <main class="operator">
        <section aria-label="Now">
          <h2>Now</h2>
          <div class="sparks">
            <Sparkline name="Threads" title="Threads that have not ended." values={gauge("forkjoin:threads_running")} format={whole} />
            <Sparkline name="Sequences that decode" title="Running threads, and requests that have not forked." values={gauge("vllm:num_requests_running")} format={whole} />
            <Sparkline name="Requests that wait" title="For admission, or their API key’s turn." values={gauge("forkjoin:requests_waiting")} format={whole} />
            <Sparkline name="Threads that wait" title="For a slot, for KV blocks, or their turn." values={gauge("forkjoin:threads_waiting")} format={whole} />
            <Sparkline name="KV blocks in use" title="Of the fullest engine. A prefix that threads share counts once." values={readings.map((r) => greatest(r, "vllm:kv_cache_usage_perc"))} format={percent} top={1} />
            <Sparkline name="Tokens" title="Of the transcripts that clients get." values={rates("vllm:generation_tokens_total")} format={perSecond} />
          </div>
        </section>
        <section aria-label="Families">
          <h2>Families: each request with all its threads</h2>
          {families.trouble !== null && (
            <p class="notice" role="status">
              {families.trouble}{" "}
              {families.wantsKey && (
                <button type="button" onClick={() => setAsksKey(true)}>
                  Enter an API key
                </button>
              )}
            </p>
          )}
          {engines.map((engine) => (
            <EngineFamilies key={engine.engine} engine={engine} isOnlyOne={engines.length === 1} />
          ))}
        </section>
        <section aria-label="Admission">
          <h2>Admission: what came, against what it expected</h2>
          <div class="sparks">
            <Sparkline name="KV blocks, median" title="Most that an answer held over those expected: above 1×, it took more." values={latency("forkjoin:admission_peak_ratio", 0.5)} format={times} />
            <Sparkline name="KV blocks, 95 %" title="19 of 20 took less, against those expected." values={latency("forkjoin:admission_peak_ratio", 0.95)} format={times} />
            <Sparkline name="Time in the queue, median" title="Until a request first ran, as admission lets it." values={latency("vllm:request_queue_time_seconds", 0.5)} format={duration} />
          </div>
        </section>
        <section aria-label="Forks and joins">
          <h2>Forks and joins</h2>
          <div class="sparks">
            <Sparkline name="Forks" title="Forks made." values={rates("forkjoin:forks_total")} format={perSecond} />
            <Sparkline name="Fewer steps" title="Tokens by those on the critical path, of answers that ended in half a minute." values={gain} format={times} />
            <Sparkline name="Fork latency, median" title="From the trigger to a thread’s first token." values={latency("forkjoin:fork_latency_seconds", 0.5)} format={duration} />
            <Sparkline name="Fork latency, 95 %" title="19 of 20 are faster." values={latency("forkjoin:fork_latency_seconds", 0.95)} format={duration} />
            <Sparkline name="Join latency, median" title="From the last thread’s end to the next token." values={latency("forkjoin:join_latency_seconds", 0.5)} format={duration} />
          </div>
        </section>
        {last !== undefined && (
          <section aria-label="Since the start">
            <h2>Since the start</h2>
            <div class="tables">
              <Table name="Answers, by their end" rows={byLabel(last, "vllm:request_success_total", ["finished_reason"])} />
              <Table name="Threads, by their end" rows={byLabel(last, "forkjoin:threads_ended_total", ["reason"])} />
              <Table name="Votes" rows={byLabel(last, "forkjoin:votes_total", ["outcome"])} />
              <Table name="Refused: too much waits" rows={byLabel(last, "forkjoin:requests_refused_total", ["reason"])} />
              <Table name="Malformed, and limits" rows={byLabel(last, "forkjoin:malformed_outputs_total", ["kind", "policy"])} />
              <Table name="Evicted for want of blocks" rows={byLabel(last, "vllm:num_preemptions_total", ["model_name"])} />
              <Table name="Internal errors" rows={byLabel(last, "forkjoin:internal_errors_total", ["where"])} />
            </div>
          </section>
        )}
      </main>
      {asksKey && (
        <KeyDialog
          apiKey={apiKey}
          isWrong={families.wantsKey && apiKey !== null}
          onKey={(key) => {
            keep("key", key);
            setApiKey(key);
            setAsksKey(false);
          }}
          onClose={() => setAsksKey(false)}
        />
      )}
    </>
  );
}

function Table({ name, rows }: { name: string; rows: [string, number][] }) {
  return (
    <table>
      <caption>{name}</caption>
      <tbody>
        {rows.length === 0 && (
          <tr>
            <td>none</td>
          </tr>
        )}
        {rows.map(([label, value]) => (
          <tr key={label}>
            <th scope="row">{label}</th>
            <td>{whole(value)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
