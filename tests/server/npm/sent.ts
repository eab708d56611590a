/** What the server streams to a client that asks for agents, in the words of the npm SDK's beta. */

import type { BetaResponse, BetaResponseStreamEvent } from "openai/resources/beta/responses/responses";

/** Of a whole response its output: vLLM writes the rest, with agents or without, and OpenAI adds fields to it. */
type WithOutput<Event> = Event extends { response: BetaResponse }
  ? Omit<Event, "response"> & { response: Pick<BetaResponse, "output"> }
  : Event;

export type Sent = WithOutput<BetaResponseStreamEvent>;
