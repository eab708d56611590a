import assert from "node:assert/strict";
import { test } from "node:test";

import type { AnswerDelta, ToolCallPiece } from "vllm-forkjoin";
import { Recorder } from "../src/recording";

test("a tool call is shown as it is written", () => {
  const recorder = new Recorder();
  const delta = (...toolCalls: ToolCallPiece[]): AnswerDelta => ({ type: "answer_delta", text: "", isReasoning: false, toolCalls, usage: null });
  const pieces: ToolCallPiece[] = [{ index: 0, id: "c", function: { name: "add", arguments: "" } }, { index: 0, function: { arguments: "{}" } }];
  const events = [...pieces, ...pieces].map((piece) => recorder.record(delta(piece), 0));
  assert.equal(events.map((event) => event.type === "text" && event.text).join(""), "Tool call add: {}\nTool call add: {}");
});
