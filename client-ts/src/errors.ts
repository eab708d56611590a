/**
 * ForkJoinError
 * ├─ ApiError           the server refused the request, or gave up on it: has a status
 * ├─ ConnectionFailed   no answer came: the server is gone, or unreachable
 * └─ StreamBroken       the answer stopped in the middle, or is no event stream
 *
 * A request that the caller aborted throws the signal's own reason.
 */
export class ForkJoinError extends Error {
  override name = "ForkJoinError";
}

export class ApiError extends ForkJoinError {
  override name = "ApiError";

  constructor(
    message: string,
    readonly status: number,
    /** Seconds after which the server wants to be asked again, if it says so. */
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
  }
}

export class ConnectionFailed extends ForkJoinError {
  override name = "ConnectionFailed";
}

export class StreamBroken extends ForkJoinError {
  override name = "StreamBroken";
}
