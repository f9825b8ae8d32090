// Figures over the last moments: rates, and a moving record of latencies.

export const STAGES = ["decode", "prepare", "wait", "infer", "encode", "transport"];

/** Events per second over the last two seconds. */
export class Rate {
  constructor(windowMs = 2000) {
    this.windowMs = windowMs;
    this.times = [];
  }

  count(now = performance.now()) {
    this.times.push(now);
    this.#prune(now);
  }

  perSecond(now = performance.now()) {
    this.#prune(now);
    if (this.times.length < 2) return 0;
    return ((this.times.length - 1) * 1000) / Math.max(1, now - this.times[0]);
  }

  #prune(now) {
    while (this.times.length && now - this.times[0] > this.windowMs) this.times.shift();
  }
}

/** Where one answer's time went, in milliseconds; transport is what the service's stages do not explain. */
export function splitLatency(header, roundTripMs) {
  const stages = { ...header.latency_ms };
  const inside = STAGES.reduce((sum, stage) => sum + (stages[stage] ?? 0), 0);
  stages.transport = Math.max(0, roundTripMs - inside);
  return { stages, roundTripMs };
}

/** The last `size` latencies, oldest first. */
export class LatencyRecord {
  constructor(size = 150) {
    this.size = size;
    this.entries = [];
  }

  add(entry) {
    this.entries.push(entry);
    if (this.entries.length > this.size) this.entries.shift();
  }

  clear() {
    this.entries = [];
  }

  /** The middle value of one stage, or of the round trip, over the last two seconds or so. */
  median(stage) {
    const recent = this.entries.slice(-50).map((entry) => entry.stages[stage] ?? 0);
    return percentile(recent, 0.5);
  }

  roundTrip(share) {
    return percentile(this.entries.map((entry) => entry.roundTripMs), share);
  }
}

function percentile(values, share) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((left, right) => left - right);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}
