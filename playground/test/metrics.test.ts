import assert from "node:assert/strict";
import { test } from "node:test";

import { byLabel, parse, quantile, rate, sum } from "../src/operator/metrics";

const BEFORE = parse('# HELP x y\na_total{k="1"} 2\na_total{k="2"} 3\nab_total 100\nh_bucket{le="1.0"} 0\nh_bucket{le="2.0"} 0\nh_bucket{le="+Inf"} 0\n', 0);
const AFTER = parse('a_total{k="1"} 6\na_total{k="2"} 3\nh_bucket{le="1.0"} 2\nh_bucket{le="2.0"} 4\nh_bucket{le="+Inf"} 4\n', 2000);

test("a metric is summed over its labels, and no other begins like it", () => {
  assert.equal(sum(BEFORE, "a_total"), 5);
  assert.equal(sum(BEFORE, "b_total"), null);
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
