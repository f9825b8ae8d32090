// The viewer page: joins a source, the connection, the overlay and the panels.

import { StreamConnection } from "./connection.js";
import { MaskDecoder, Overlay, makePalette } from "./overlay.js";
import { Panels } from "./panels.js";
import { CameraSource, FileSource, PictureSource, SceneSource } from "./sources.js";
import { LatencyRecord, Rate, splitLatency } from "./statistics.js";

const element = (id) => document.getElementById(id);
const query = new URLSearchParams(window.location.search);
const sceneParameters = Object.fromEntries(
  ["fps", "width", "height", "seed", "view", "instruments"].map((name) => [name, query.get(name)]),
);

/** What the page shows, for tests and for the curious; read it, do not write it. */
const state = {
  connection: "connecting",
  source: null,
  isPaused: false,
  framesIn: 0,
  framesShown: 0,
  fpsIn: 0,
  fpsOut: 0,
  lastSequence: 0,
  mismatches: 0,
};
window.surgseg = state;

const overlay = new Overlay(element("view"));
const decoder = new MaskDecoder();
const rates = { in: new Rate(), out: new Rate() };
const latencies = new LatencyRecord();
const panels = new Panels(latencies);
let source = null;
let lastHeader = null;
let showing = Promise.resolve();

const connection = new StreamConnection({
  onState(name, text) {
    state.connection = name;
    if (name === "ready") {
      latencies.clear();
      panels.clearMessage("connection");
      if (!state.isPaused) source?.start();
    } else {
      source?.stop();
      if (name !== "connecting") panels.say(text, "error", "connection");
    }
    panels.showState(state);
  },
  onEvent(event) {
    if (event.type === "ready") {
      overlay.palette = makePalette(event.classes);
      panels.showModel(event);
    } else if (event.type === "error") {
      panels.say(event.detail ?? event.title ?? "The service reports an error.", "error");
    } else if (event.type === "notice") {
      if (event.model) {
        // After the masks that are still being drawn: those are the model's before.
        showing = showing.then(() => {
          overlay.palette = makePalette(event.classes);
          panels.showModel(event);
        });
      }
      panels.say(event.detail ?? event.message ?? "The service sent a notice.", "notice");
    } else if (event.type === "closing") {
      panels.say(event.detail ?? event.reason ?? "The service is closing this stream.", "notice");
    }
  },
  onAnswer(answer) {
    // One after another, so that a slow decode cannot let masks overtake each other.
    showing = showing
      .then(() => show(answer))
      .catch((error) => panels.say(`A mask could not be drawn: ${error.message}`, "error"));
  },
});

async function show({ header, mask, frame, roundTripMs }) {
  const decoded = await decoder.decode(mask);
  if (state.isPaused) {
    frame.close();
    return;
  }
  overlay.show(frame, decoded);
  rates.out.count();
  latencies.add(splitLatency(header, roundTripMs));
  lastHeader = header;
  state.framesShown += 1;
  state.lastSequence = header.sequence;
  state.shownCapturedAtUs = header.captured_at_us;
  if (frame.capturedAtUs !== header.captured_at_us) state.mismatches += 1;
  element("empty-view").hidden = true;
}

/** What a source talks to; it ends with the source, so that a late frame of an old one is not sent. */
function makeSink() {
  const isCurrent = (sink) => sink === source?.sink;
  return {
    arrive() {
      state.framesIn += 1;
    },
    admits() {
      return isCurrent(this) && !state.isPaused && connection.admits();
    },
    send(frame) {
      if (!isCurrent(this) || state.isPaused) {
        frame.close();
        return;
      }
      rates.in.count();
      connection.send(frame);
    },
    fail(text) {
      if (isCurrent(this)) panels.say(text, "error");
    },
  };
}

function choose(next) {
  source?.stop();
  source?.dispose?.();
  source = next;
  state.source = next.name;
  latencies.clear();
  panels.clearMessage();
  panels.showSource(next.name);
  setPaused(false);
  // A new stream for a new source: sequence numbers and drops begin anew.
  connection.open(next.codec);
}

function setPaused(isPaused) {
  const wasPaused = state.isPaused;
  state.isPaused = isPaused;
  if (isPaused) source?.stop();
  else if (wasPaused && connection.isReady) source?.start();
  panels.showPaused(isPaused);
  panels.showState(state);
}

const maxWidth = () => Number(element("size").value);

function startScene(seed = sceneParameters.seed) {
  choose(new SceneSource(makeSink(), { ...sceneParameters, seed }));
}

function wire() {
  element("source-scene").onclick = () => startScene();
  element("new-scene").onclick = () => startScene(Math.floor(Math.random() * 100000));
  element("source-camera").onclick = () => choose(new CameraSource(makeSink(), maxWidth()));
  element("source-file").onclick = () => element("file").click();
  element("file").onchange = (change) => {
    const [file] = change.target.files;
    const Source = file?.type.startsWith("image/") ? PictureSource : FileSource;
    if (file) choose(new Source(makeSink(), maxWidth(), file));
    change.target.value = "";
  };
  element("size").onchange = () => {
    if (source) source.maxWidth = maxWidth();
  };
  element("pause").onclick = () => setPaused(!state.isPaused);
  element("opacity").oninput = (input) => {
    overlay.opacity = Number(input.target.value) / 100;
    overlay.redraw();
  };
  element("outline").onchange = (change) => {
    overlay.hasOutline = change.target.checked;
    overlay.redraw();
  };
  element("full-screen").onclick = toggleFullScreen;
  document.addEventListener("keydown", pressKey);
  // After a click with the mouse, Space shall pause and not press the same control again.
  document.addEventListener("click", (click) => {
    if (click.detail > 0) click.target.closest("button, input[type=checkbox]")?.blur();
  });
}

function toggleFullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else element("screen").requestFullscreen();
}

function pressKey(press) {
  if (press.ctrlKey || press.altKey || press.metaKey || press.repeat) return;
  if (press.target.closest("select, button, input:not([type=range])") && press.key === " ") return;
  if (press.key === " ") setPaused(!state.isPaused);
  else if (press.key === "o") element("outline").click();
  else if (press.key === "f") toggleFullScreen();
  else return;
  press.preventDefault();
}

function refresh() {
  state.fpsIn = rates.in.perSecond();
  state.fpsOut = rates.out.perSecond();
  state.heldBack = connection.heldBack;
  panels.showFigures(state, lastHeader);
}

wire();
setInterval(refresh, 250);
if (query.get("autostart") === "0") panels.showSource(null);
else if (query.get("source") === "camera") element("source-camera").click();
else startScene();
