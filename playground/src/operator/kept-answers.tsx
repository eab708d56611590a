/** The answers whose KV one engine keeps: what each holds, for how long, and how many requests continued it. */

import { age, type Engine } from "./families";

const whole = (n: number): string => Math.round(n).toLocaleString("en");

export function KeptAnswers({ engine }: { engine: Engine }) {
  const { answers, num_answers: num } = engine.kept;
  return (
    <div class="wide" role="region" aria-label={`Kept answers of engine ${engine.engine}`} tabIndex={0}>
      <table class="families">
        <caption>
          Kept answers
          {num > answers.length && `, of which ${whole(num - answers.length)} are not shown`}
        </caption>
        <thead>
          <tr>
            <th scope="col">Answer</th>
            <th scope="col">Ends in</th>
            <th scope="col">Tokens</th>
            <th scope="col">KV blocks</th>
            <th scope="col">Continued by</th>
          </tr>
        </thead>
        <tbody>
          {answers.map(({ request_id: id, tokens, kv_blocks: blocks, expires_in_s: seconds, num_continued: continued }, i) => (
            <tr key={id ?? i}>
              <th scope="row" title={id ?? "The answer of another API key."}>
                {id ?? "another key’s"}
              </th>
              <td>{age(seconds)}</td>
              <td>{whole(tokens)}</td>
              <td>{whole(blocks)}</td>
              <td>{whole(continued)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
