// A small live plot: one column for each answer, its latency stacked by stage.

import { STAGES } from "./statistics.js";

const TOPS_MS = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
const LINES = 2;

export class LatencyPlot {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    this.colours = STAGES.map((stage) => style.getPropertyValue(`--stage-${stage}`).trim());
    this.ink = style.getPropertyValue("--ink-faint").trim();
    this.line = style.getPropertyValue("--line").trim();
    this.topMs = TOPS_MS[0];
  }

  draw(record) {
    const ratio = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, width, height);
    this.topMs = this.#top(record);
    this.#drawColumns(record, width, height);
    this.#drawLines(width, height);
  }

  #top(record) {
    // The 95th percentile: one slow answer must not flatten all others.
    const high = (record.roundTrip(0.95) ?? 0) * 1.15;
    return TOPS_MS.find((top) => top >= high) ?? TOPS_MS.at(-1);
  }

  #drawColumns(record, width, height) {
    const step = width / record.size;
    const first = record.size - record.entries.length;
    record.entries.forEach((entry, index) => {
      let base = height;
      STAGES.forEach((stage, number) => {
        const tall = ((entry.stages[stage] ?? 0) / this.topMs) * height;
        this.context.fillStyle = this.colours[number];
        this.context.fillRect((first + index) * step, base - tall, Math.max(1, step - 0.4), tall);
        base -= tall;
      });
    });
  }

  #drawLines(width, height) {
    this.context.font = "11px system-ui, sans-serif";
    this.context.textAlign = "left";
    for (let line = 0; line < LINES; line += 1) {
      const y = Math.round((height * line) / LINES) + 0.5;
      this.context.strokeStyle = this.line;
      this.context.beginPath();
      this.context.moveTo(0, y);
      this.context.lineTo(width, y);
      this.context.stroke();
      this.context.fillStyle = this.ink;
      this.context.fillText(`${(this.topMs * (LINES - line)) / LINES} ms`, 4, y + 13);
    }
  }
}
