// The connection to /v1/stream: sends frames while few are under way, hands on answers, reconnects by itself.

import { packFrame, socketUrl, unpackMask } from "./protocol.js";

const MAX_IN_FLIGHT = 2;
const ANSWER_TIMEOUT_MS = 3000;
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 8000;
const POLICY_VIOLATION = 1008;

/**
 * Calls, all on the main thread: `onState(state, text)` with state connecting, ready, waiting or refused;
 * `onEvent(event)` for every text message; `onAnswer({header, mask, frame, roundTripMs})` for every mask whose
 * frame is still known; frames that got no answer are released by `frame.close()`.
 */
export class StreamConnection {
  constructor({ onState, onEvent, onAnswer }) {
    this.onState = onState;
    this.onEvent = onEvent;
    this.onAnswer = onAnswer;
    this.inFlight = new Map();
    this.heldBack = 0;
    this.sent = 0;
    this.retryMs = FIRST_RETRY_MS;
    this.isReady = false;
  }

  /** `codec` is that of the pictures to come; a connection that was lost is opened with it again. */
  open(codec = this.codec) {
    this.codec = codec;
    this.close();
    this.onState("connecting", "Connecting to the service");
    const socket = new WebSocket(socketUrl("v1/stream", { codec, mask: "png", mode: "latest" }));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => (this.wasLetIn = true);
    socket.onmessage = (message) => this.#receive(message.data);
    socket.onclose = (closed) => this.#lose(closed);
    this.wasLetIn = false;
    this.socket = socket;
  }

  /** Stay closed until `open`. */
  close() {
    clearTimeout(this.timer);
    if (this.socket) {
      this.socket.onclose = this.socket.onmessage = null;
      this.socket.close();
      this.socket = null;
    }
    this.#forget();
  }

  /** Whether a frame may be sent now. A source asks before it spends work on one; a refusal is counted. */
  admits() {
    if (!this.isReady) return false;
    const now = performance.now();
    for (const [key, entry] of this.inFlight) {
      if (now - entry.sentAt > ANSWER_TIMEOUT_MS) this.#release(key);
    }
    if (this.inFlight.size < MAX_IN_FLIGHT) return true;
    this.heldBack += 1;
    return false;
  }

  /** Send one frame: {capturedAtUs, picture (ArrayBuffer), image, close()}. Closes it if it cannot be sent. */
  send(frame) {
    if (!this.isReady || this.inFlight.size >= MAX_IN_FLIGHT) {
      this.heldBack += 1;
      frame.close();
      return;
    }
    this.inFlight.set(frame.capturedAtUs, { frame, sentAt: performance.now() });
    this.socket.send(packFrame(frame.capturedAtUs, frame.picture));
    this.sent += 1;
  }

  #receive(data) {
    if (typeof data === "string") {
      this.#hear(JSON.parse(data));
      return;
    }
    const { header, mask } = unpackMask(data);
    const entry = this.inFlight.get(header.captured_at_us);
    if (!entry) return;
    this.inFlight.delete(header.captured_at_us);
    // Answers come in order: what was sent before this frame and is still here was dropped by the service.
    for (const [key, older] of this.inFlight) {
      if (older.sentAt < entry.sentAt) this.#release(key);
    }
    this.onAnswer({ header, mask, frame: entry.frame, roundTripMs: performance.now() - entry.sentAt });
  }

  #hear(event) {
    this.onEvent(event);
    if (event.type === "ready") {
      this.isReady = true;
      this.retryMs = FIRST_RETRY_MS;
      this.onState("ready", "Connected");
    } else if (event.type === "error") {
      this.#forgetFrames();
    }
  }

  #lose(closed) {
    this.#forget();
    if (closed.code === POLICY_VIOLATION) {
      this.onState("refused", "The service refused the stream");
      return;
    }
    const delayMs = this.retryMs;
    this.retryMs = Math.min(LAST_RETRY_MS, this.retryMs * 2);
    this.onState("waiting", `No connection to the service. Trying again in ${(delayMs / 1000).toFixed(1)} s`);
    this.timer = setTimeout(() => this.open(), delayMs);
    if (!this.wasLetIn) this.#askWhy(closed.target);
  }

  /** A script is not told why a WebSocket was not let in, but what another request of the same scope is answered. */
  async #askWhy(socket) {
    const answer = await fetch("v1/segment", { method: "POST" }).catch(() => null);
    if (![401, 403].includes(answer?.status)) return;
    const problem = await answer.json();
    if (socket !== this.socket) return;
    clearTimeout(this.timer);
    this.onState("refused", problem.detail);
  }

  #forget() {
    this.isReady = false;
    this.#forgetFrames();
  }

  #forgetFrames() {
    for (const key of [...this.inFlight.keys()]) this.#release(key);
  }

  #release(key) {
    this.inFlight.get(key).frame.close();
    this.inFlight.delete(key);
  }
}
