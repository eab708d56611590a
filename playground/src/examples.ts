/** What to ask: for the embedded model what it was trained on, for any other model general prompts. */

import { EMPTY, type Form } from "./form";
import type { Served } from "./served";

export interface Example {
  name: string;
  form: Form;
}

const THREE = "a=482*731, b=9047*36, c=218*654";
const SIX = "a=482*731, b=907*368, c=9047*36, d=5120*48, e=639*274, f=816*925";
/** c, d and e wait for a and b: they are a second fork, after the join of the first. */
const TWICE = "a=48*36, b=75*92, c=a*273, d=b*481, e=a*569";

const EMBEDDED: [string, Partial<Form>][] = [
  ["Three products", { prompt: THREE }],
  ["Six products", { prompt: SIX }],
  ["Two forks", { prompt: TWICE }],
  ["Two of three fork", { prompt: "a=482*731, b=7*8, c=9047*36" }],
  ["No fork", { prompt: "a=3*4, b=7*8" }],
  ["A vote of eight", { prompt: "a=17*23, b=4*5", mode: "vote", best_of: "8", vote: String.raw`total ends in (?P<result>\d)`, temperature: "0.6" }],
];

const ANY: [string, Partial<Form>][] = [
  ["Three sub-questions", { prompt: "How do bees, bats and whales find their way? Treat each on its own, then say what they share." }],
  ["Cases", { prompt: "Prove that n² + n is even for every integer n. Split the proof into cases." }],
  ["For and against", {
    prompt: "Should a small town build a tram?",
    mode: "branches",
    branches: [{ title: "for", text: "Reasons for it: " }, { title: "against", text: "Reasons against it: " }],
    closing: "\n\nAll in all, ",
  }],
  ["A vote of five", {
    prompt: "What is 17 * 23? Reason step by step, then end with “Answer: ” and the number.",
    mode: "vote", best_of: "5", vote: String.raw`Answer: (?P<result>\d+)`, temperature: "0.7",
  }],
];

/** The examples for what is served; the first fills the form of a new page. */
export function examplesFor(served: Served | null): Example[] {
  if (served?.isEmbedded !== true) return ANY.map(example);
  return EMBEDDED.map(([name, form]) => example([name, { temperature: "0", ...form }]));
}

function example([name, form]: [string, Partial<Form>]): Example {
  return { name, form: { ...EMPTY, ...form } };
}
