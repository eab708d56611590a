/** The families of one engine: their threads, and the KV blocks of each against those that admission expected. */

import { waitOf } from "../words";
import { age, type Engine, expectationOf, type Family, keptOf, threadsOf, waitsOf } from "./families";
import { KeptAnswers } from "./kept-answers";

const whole = (n: number): string => Math.round(n).toLocaleString("en");

export function EngineFamilies({ engine, isOnlyOne }: { engine: Engine; isOnlyOne: boolean }) {
  const { kv_blocks: blocks, waiting, families } = engine;
  const largest = Math.max(1, ...families.map((f) => Math.max(f.kv_blocks, f.peak_kv_blocks ?? 0, f.expected_kv_blocks ?? 0)));
  return (
    <div class="engine">
      <dl>
        <Fact name="KV blocks in use" value={`${whole(blocks.total - blocks.free)} of ${whole(blocks.total)}, ${blocks.tokens_per_block} tokens each`} />
        <Fact name="Queue" value={`${whole(waiting.requests)} requests, ${whole(waiting.threads)} threads`} />
        <Fact name="Kept waiting for room" value={waiting.for_room > 0 ? "yes: admission expects too little room for the next" : "no"} />
        <Fact name="Kept for requests to come" value={keptOf(engine)} />
        <Fact name="Expected of one more request" value={expectationOf(engine)} />
      </dl>
      <div class="wide" role="region" aria-label={`Families of engine ${engine.engine}`} tabIndex={0}>
        <table class="families">
          <caption>
            {isOnlyOne ? "" : `Engine ${engine.engine}: `}
            {whole(engine.num_families)} {engine.num_families === 1 ? "family" : "families"}
            {engine.num_left_out > 0 && `, of which ${whole(engine.num_left_out)} are not shown`}
          </caption>
          <thead>
            <tr>
              <th scope="col">Request</th>
              <th scope="col">Age</th>
              <th scope="col">State</th>
              <th scope="col">Threads</th>
              <th scope="col">Waits for</th>
              <th scope="col">Tokens</th>
              <th scope="col">KV blocks: now, most, expected</th>
            </tr>
          </thead>
          <tbody>
            {families.map((family, i) => (
              <Row key={family.request_id ?? i} family={family} largest={largest} />
            ))}
          </tbody>
        </table>
      </div>
      {engine.kept.num_answers > 0 && <KeptAnswers engine={engine} />}
    </div>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function Row({ family, largest }: { family: Family; largest: number }) {
  const { request_id: id, kv_blocks: now, peak_kv_blocks: most, expected_kv_blocks: expected } = family;
  const gain = family.critical_path_tokens > 0 ? family.total_tokens / family.critical_path_tokens : 1;
  return (
    <tr>
      <th scope="row" title={id ?? "The request of another API key."}>
        {id ?? "another key’s"}
      </th>
      <td>{age(family.age_s)}</td>
      <td class={`state ${family.state}`}>{family.state}</td>
      <td>{threadsOf(family)}</td>
      <td title={family.waits_for.map((why) => waitOf(why)[1]).join(" ")}>{waitsOf(family)}</td>
      <td title={`${whole(family.critical_path_tokens)} on the critical path`}>
        {whole(family.total_tokens)}
        {gain > 1.005 && ` (${gain.toFixed(2)}×)`}
      </td>
      <td>
        <div class="blocks">
          <Blocks now={now} most={most ?? now} expected={expected} largest={largest} />
          <span>
            {whole(now)}, {most === null ? "–" : whole(most)}, {expected === null ? "–" : whole(expected)}
          </span>
        </div>
      </td>
    </tr>
  );
}

/** A bar of the blocks held now, behind it the most, and a mark at those expected. */
function Blocks({ now, most, expected, largest }: { now: number; most: number; expected: number | null; largest: number }) {
  const x = (blocks: number): number => (blocks / largest) * 100;
  return (
    <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
      <rect class="most" width={x(most)} height="10" />
      <rect class="now" width={x(now)} height="10" />
      {expected !== null && <path class="expected" d={`M${x(expected)} 0V10`} />}
    </svg>
  );
}
