import assert from "node:assert/strict";
import { test } from "node:test";

import { byLabel, greatest, parse, quantile, rate, sum } from "../src/operator/metrics";

const BEFORE = parse('# HELP x y\na_total{k="1"} 2\na_total{k="2"} 3\nab_total 100\nh_bucket{le="1.0"} 0\nh_bucket{le="2.0"} 0\nh_bucket{le="+Inf"} 0\n', 0);
const AFTER = parse('a_total{k="1"} 6\na_total{k="2"} 3\nh_bucket{le="1.0"} 2\nh_bucket{le="2.0"} 4\nh_bucket{le="+Inf"} 4\n', 2000);

test("a metric is summed over its labels, and no other begins like it", () => {
  assert.equal(sum(BEFORE, "a_total"), 5);
  assert.equal(sum(BEFORE, "b_total"), null);
});

test("a share is that of the fullest engine, not the sum of all", () => {
  const engines = parse('kv{engine="0"} 0.7\nkv{engine="1"} 0.9\nkv_more 5\n', 0);
  assert.equal(greatest(engines, "kv"), 0.9);
  assert.equal(greatest(engines, "k"), null);
});

test("a rate is what came in a second; a counter that began again counts from nothing", () => {
  assert.equal(rate(BEFORE, AFTER, "a_total"), 2);
  assert.equal(rate(AFTER, { ...BEFORE, at: 4000 }, "a_total"), 2.5);
});

test("values by label, the largest first", () => {
  assert.deepEqual(byLabel(AFTER, "a_total", ["k"]), [["1", 6], ["2", 3]]);
});

test("a quantile lies within the bucket that holds it", () => {
  assert.equal(quantile(BEFORE, AFTER, "h", 0.5), 1);
  assert.equal(quantile(BEFORE, AFTER, "h", 0.75), 1.5);
  assert.equal(quantile(AFTER, AFTER, "h", 0.5), null);
});

test("a quantile over a start of the server is of what came since", () => {
  const histogram = (one: number, two: number): string => `h_bucket{le="1.0"} ${one}\nh_bucket{le="+Inf"} ${two}\nh_count ${two}\n`;
  assert.equal(quantile(parse(histogram(9, 9), 0), parse(histogram(4, 4), 2000), "h", 0.5), 0.5);
});
