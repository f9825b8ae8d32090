// The bytes of surgseg's stream protocol, version 1. Pure functions; see docs/wire-protocol.md.

const CAPTURED_AT_BYTES = 8;
const LENGTH_BYTES = 4;

/** One message to /v1/stream: 8 bytes of captured_at_us, big-endian, then the picture (an ArrayBuffer). */
export function packFrame(capturedAtUs, picture) {
  const message = new Uint8Array(CAPTURED_AT_BYTES + picture.byteLength);
  new DataView(message.buffer).setBigUint64(0, BigInt(capturedAtUs));
  message.set(new Uint8Array(picture), CAPTURED_AT_BYTES);
  return message;
}

/** The inverse: {capturedAtUs, picture}. captured_at_us is a clock in microseconds and stays below 2**53. */
export function unpackFrame(buffer) {
  if (buffer.byteLength <= CAPTURED_AT_BYTES) {
    throw new Error(`A message of ${buffer.byteLength} bytes holds no picture.`);
  }
  const capturedAtUs = Number(new DataView(buffer).getBigUint64(0));
  return { capturedAtUs, picture: new Uint8Array(buffer, CAPTURED_AT_BYTES) };
}

/** One message from the service: {header, mask}; the header is its JSON, the mask its encoded bytes. */
export function unpackMask(buffer) {
  const length = buffer.byteLength < LENGTH_BYTES ? NaN : new DataView(buffer).getUint32(0);
  if (!(LENGTH_BYTES + length <= buffer.byteLength)) {
    throw new Error(`A message of ${buffer.byteLength} bytes holds no header of ${length} bytes.`);
  }
  const text = new TextDecoder().decode(new Uint8Array(buffer, LENGTH_BYTES, length));
  return { header: JSON.parse(text), mask: new Uint8Array(buffer, LENGTH_BYTES + length) };
}

/** The address of a WebSocket of this very service, with query parameters; empty ones are left out. */
export function socketUrl(path, parameters) {
  const url = new URL(path, window.location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined) url.searchParams.set(name, value);
  }
  return url.href;
}

/** Microseconds of this browser's clock, never the same twice. */
export function nowUs() {
  lastUs = Math.max(lastUs + 1, Math.round((performance.timeOrigin + performance.now()) * 1000));
  return lastUs;
}

let lastUs = 0;
