// The panels beside the video: what the service says, and what this page measures.

import { LatencyPlot } from "./plot.js";
import { STAGES } from "./statistics.js";

const element = (id) => document.getElementById(id);

const STAGE_NAMES = { transport: "network" };
const DROP_NAMES = {
  superseded: "newer came",
  deadline: "too late",
  undecodable: "unreadable",
  closed: "closed",
};
const ALWAYS_SHOWN = ["superseded", "deadline"];
const NOTICE_MS = 8000;

export class Panels {
  constructor(latencies) {
    this.latencies = latencies;
    this.plot = new LatencyPlot(element("plot"));
    this.stageFigures = new Map(STAGES.map((stage) => [stage, this.#addStage(stage)]));
    element("message-close").onclick = () => this.clearMessage();
  }

  #addStage(stage) {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `var(--stage-${stage})`;
    return addFigure(element("stages"), STAGE_NAMES[stage] ?? stage, swatch);
  }

  /** `level` is notice, which goes by itself, or error, which stays; `topic` lets a later event take it back. */
  say(text, level, topic = "") {
    const box = element("message");
    box.hidden = false;
    box.dataset.level = level;
    box.dataset.topic = topic;
    element("message-text").textContent = text;
    clearTimeout(this.timer);
    if (level === "notice") this.timer = setTimeout(() => this.clearMessage(), NOTICE_MS);
  }

  clearMessage(topic) {
    const box = element("message");
    if (topic === undefined || box.dataset.topic === topic) box.hidden = true;
  }

  showState(state) {
    const [name, text] = describeState(state);
    element("state").dataset.state = name;
    if (element("state-text").textContent !== text) element("state-text").textContent = text;
  }

  showModel({ model, classes }) {
    element("model").textContent = `${model.name} ${model.version}`;
    element("model").title = element("model").textContent;
    const items = classes.filter((info) => info.id !== 0).map((info) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `rgb(${info.colour.join(" ")})`;
      item.append(swatch, info.name);
      return item;
    });
    element("classes").replaceChildren(...items);
  }

  showSource(name) {
    for (const kind of ["scene", "file", "camera"]) {
      element(`source-${kind}`).setAttribute("aria-pressed", String(kind === name));
    }
    element("new-scene").hidden = name !== "scene";
    element("size-label").hidden = name === "scene" || name === null;
    element("empty-view").textContent = name ? "Waiting for the first frame" : "Choose a source to begin.";
  }

  showPaused(isPaused) {
    element("pause").setAttribute("aria-pressed", String(isPaused));
    element("pause").textContent = isPaused ? "Continue" : "Pause";
    element("paused").hidden = !isPaused;
  }

  showFigures(state, header) {
    element("fps-in").textContent = state.fpsIn.toFixed(1);
    element("fps-out").textContent = state.fpsOut.toFixed(1);
    element("round-trip").textContent = formatMs(this.latencies.roundTrip(0.5));
    for (const [stage, figure] of this.stageFigures) {
      figure.textContent = formatMs(this.latencies.median(stage));
    }
    this.plot.draw(this.latencies);
    this.#showDrops(state, header);
    this.showState(state);
  }

  #showDrops(state, header) {
    const dropped = header?.dropped ?? {};
    const causes = new Set([...ALWAYS_SHOWN, ...Object.keys(dropped)]);
    const list = element("drops");
    list.replaceChildren();
    for (const cause of causes) {
      addFigure(list, DROP_NAMES[cause] ?? cause).textContent = dropped[cause] ?? 0;
    }
    addFigure(list, "skipped").textContent = header?.skipped ?? 0;
    addFigure(list, "held back").textContent = state.heldBack;
  }
}

function addFigure(list, name, swatch) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const figure = document.createElement("dd");
  if (swatch) term.append(swatch);
  term.append(name);
  row.append(term, figure);
  list.append(row);
  return figure;
}

function formatMs(value) {
  if (value === null) return "–";
  return value < 9.95 ? value.toFixed(1) : value.toFixed(0);
}

function describeState({ connection, isPaused, source, fpsOut }) {
  if (connection === "waiting") return ["lost", "Reconnecting"];
  if (connection === "refused") return ["lost", "Refused"];
  if (source === null) return ["idle", "No source"];
  if (isPaused) return ["paused", "Paused"];
  if (connection !== "ready") return ["connecting", "Connecting"];
  return fpsOut > 0 ? ["live", "Live"] : ["idle", "Waiting for frames"];
}
