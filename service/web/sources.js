// Where frames come from: the service's synthetic scene, a video file or a picture, the camera.
//
// Every source has start(), stop(), a `name`, the `codec` of its pictures, and calls `sink.admits()` before it spends
// work on a frame, `sink.send(frame)` with {capturedAtUs, picture, image, close()}, and `sink.fail(text)` when it
// cannot go on.

import { nowUs, socketUrl, unpackFrame } from "./protocol.js";

const JPEG_QUALITY = 0.9;
const RETRY_MS = 1500;
const PICTURE_MS = 500;

function makeFrame(capturedAtUs, picture, image) {
  return { capturedAtUs, picture, image, close: () => image.close() };
}

/** Draw on the context's canvas, which becomes at most `maxWidth` wide. */
function drawScaled(context, picture, width, height, maxWidth) {
  const { canvas } = context;
  const scale = Math.min(1, maxWidth / width);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
}

/** The canvas as a frame of this moment. */
async function takeFrame(canvas, type) {
  const capturedAtUs = nowUs();
  const [image, blob] = await Promise.all([
    createImageBitmap(canvas),
    new Promise((resolve) => canvas.toBlob(resolve, type, JPEG_QUALITY)),
  ]);
  return makeFrame(capturedAtUs, await blob.arrayBuffer(), image);
}

/** The synthetic scene of /v1/scene. `parameters` are its query parameters. */
export class SceneSource {
  constructor(sink, parameters) {
    this.name = "scene";
    this.codec = "jpeg";
    this.sink = sink;
    this.parameters = parameters;
    this.playedS = Number(parameters.start_s ?? 0);
  }

  start() {
    this.stop();
    const parameters = { ...this.parameters, start_s: this.playedS.toFixed(3) };
    const socket = new WebSocket(socketUrl("v1/scene", parameters));
    socket.binaryType = "arraybuffer";
    socket.onmessage = (message) => this.#receive(message.data);
    socket.onclose = (closed) => this.#lose(closed);
    this.socket = socket;
    this.firstUs = null;
    this.startedAtS = this.playedS;
  }

  stop() {
    clearTimeout(this.timer);
    if (!this.socket) return;
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.socket = null;
  }

  async #receive(data) {
    if (typeof data === "string") {
      const event = JSON.parse(data);
      this.refusal = event.detail ?? `The scene answered ${event.type}.`;
      this.sink.fail(this.refusal);
      return;
    }
    const socket = this.socket;
    const { capturedAtUs, picture } = unpackFrame(data);
    this.firstUs ??= capturedAtUs;
    this.playedS = this.startedAtS + (capturedAtUs - this.firstUs) / 1e6;
    this.sink.arrive();
    if (!this.sink.admits()) return;
    const image = await createImageBitmap(new Blob([picture], { type: "image/jpeg" }));
    if (socket === this.socket) this.sink.send(makeFrame(capturedAtUs, picture, image));
    else image.close();
  }

  #lose(closed) {
    this.socket = null;
    if (closed.code === 1008) return;
    if (closed.code === 1006 && this.firstUs === null) this.sink.fail("The service offers no synthetic scene now.");
    this.timer = setTimeout(() => this.start(), RETRY_MS);
  }
}

/** A video element's frames, made smaller to at most `maxWidth` pixels and encoded as JPEG. */
class VideoSource {
  constructor(sink, maxWidth) {
    this.codec = "jpeg";
    this.sink = sink;
    this.maxWidth = maxWidth;
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.video = document.createElement("video");
    this.video.muted = true;
    this.video.playsInline = true;
    this.video.loop = true;
  }

  stop() {
    this.isRunning = false;
    this.video.pause();
  }

  async play() {
    this.isRunning = true;
    await this.video.play();
    this.#await();
  }

  #await() {
    this.video.cancelVideoFrameCallback(this.callback);
    this.callback = this.video.requestVideoFrameCallback(() => {
      if (!this.isRunning) return;
      this.#await();
      this.sink.arrive();
      if (!this.isEncoding && this.sink.admits()) this.#push();
    });
  }

  async #push() {
    this.isEncoding = true;
    try {
      const { videoWidth, videoHeight } = this.video;
      drawScaled(this.context, this.video, videoWidth, videoHeight, this.maxWidth);
      const frame = await takeFrame(this.canvas, "image/jpeg");
      if (this.isRunning) this.sink.send(frame);
      else frame.close();
    } finally {
      this.isEncoding = false;
    }
  }
}

/** A video file that this browser decodes. */
export class FileSource extends VideoSource {
  constructor(sink, maxWidth, file) {
    super(sink, maxWidth);
    this.name = "file";
    this.file = file;
    this.url = URL.createObjectURL(file);
    this.video.src = this.url;
  }

  async start() {
    try {
      await this.play();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.sink.fail(
        `This browser cannot play ${this.file.name}. It plays MP4 (H.264) and WebM (VP8, VP9, AV1). ` +
          "Convert the file, or segment it with: surgseg segment FILE --out FOLDER",
      );
    }
  }

  dispose() {
    this.stop();
    URL.revokeObjectURL(this.url);
  }
}

/** A picture file, sent over and over without loss: what is shown is what the model sees. */
export class PictureSource {
  constructor(sink, maxWidth, file) {
    this.name = "file";
    this.codec = "png";
    this.sink = sink;
    this.maxWidth = maxWidth;
    this.file = file;
    this.context = document.createElement("canvas").getContext("2d", { alpha: false });
  }

  async start() {
    this.stop();
    this.isRunning = true;
    try {
      this.picture ??= await createImageBitmap(this.file);
    } catch {
      this.sink.fail(`This browser cannot show ${this.file.name}. It shows PNG and JPEG pictures.`);
      return;
    }
    if (!this.isRunning) return;
    this.timer = setInterval(() => this.#push(), PICTURE_MS);
    this.#push();
  }

  stop() {
    this.isRunning = false;
    clearInterval(this.timer);
  }

  async #push() {
    this.sink.arrive();
    if (!this.sink.admits()) return;
    drawScaled(this.context, this.picture, this.picture.width, this.picture.height, this.maxWidth);
    this.sink.send(await takeFrame(this.context.canvas, "image/png"));
  }

  dispose() {
    this.stop();
    this.picture?.close();
  }
}

const CAMERA_ERRORS = {
  NotAllowedError: "This page may not use the camera. Allow it in the browser's address bar and try again.",
  NotFoundError: "No camera was found. Connect one and try again.",
  NotReadableError: "Another program uses the camera. Close it and try again.",
};

/** The browser's camera. */
export class CameraSource extends VideoSource {
  constructor(sink, maxWidth) {
    super(sink, maxWidth);
    this.name = "camera";
  }

  async start() {
    if (!navigator.mediaDevices) {
      this.sink.fail("The camera works only over https or on localhost. Open the page at such an address.");
      return;
    }
    try {
      const size = { width: { ideal: 1280 }, height: { ideal: 720 } };
      this.media ??= await navigator.mediaDevices.getUserMedia({ video: size, audio: false });
      this.video.srcObject = this.media;
      await this.play();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.sink.fail(CAMERA_ERRORS[error.name] ?? `The camera failed: ${error.message}`);
    }
  }

  dispose() {
    this.stop();
    for (const track of this.media?.getTracks() ?? []) track.stop();
  }
}
