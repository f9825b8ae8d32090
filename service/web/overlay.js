// Draws a frame with its own mask.

/** The class ids of a single-channel 8-bit PNG: {ids: Uint8Array, width, height}. */
export class MaskDecoder {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  }

  async decode(png) {
    // Ids are numbers, not colours: neither colour management nor alpha may touch them.
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const bitmap = await createImageBitmap(new Blob([png], { type: "image/png" }), options);
    const { width, height } = bitmap;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const pixels = this.context.getImageData(0, 0, width, height).data;
    const ids = new Uint8Array(width * height);
    for (let index = 0; index < ids.length; index += 1) ids[index] = pixels[index * 4];
    return { ids, width, height };
  }
}

/** Colours per class id as 32-bit RGBA words without alpha, from the classes of the `ready` event. */
export function makePalette(classes) {
  const palette = new Uint32Array(256);
  for (const { id, colour } of classes) {
    const [red, green, blue] = colour;
    palette[id] = (blue << 16) | (green << 8) | red;
  }
  return palette;
}

export class Overlay {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.layer = document.createElement("canvas");
    this.layerContext = this.layer.getContext("2d");
    this.palette = new Uint32Array(256);
    this.opacity = 0.45;
    this.hasOutline = true;
  }

  /** Show a frame with its mask; the frame shown before is released. */
  show(frame, mask) {
    if (this.frame && this.frame !== frame) this.frame.close();
    this.frame = frame;
    this.mask = mask;
    this.redraw();
  }

  redraw() {
    if (!this.frame) return;
    const { image } = this.frame;
    if (this.canvas.width !== image.width || this.canvas.height !== image.height) {
      this.canvas.width = image.width;
      this.canvas.height = image.height;
    }
    this.context.drawImage(image, 0, 0);
    this.#tint();
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(this.layer, 0, 0, image.width, image.height);
  }

  #tint() {
    const { ids, width, height } = this.mask;
    this.layer.width = width;
    this.layer.height = height;
    const picture = new ImageData(width, height);
    const words = new Uint32Array(picture.data.buffer);
    const fill = Math.round(this.opacity * 255) << 24;
    const edge = this.hasOutline ? 255 << 24 : fill;
    for (let index = 0; index < ids.length; index += 1) {
      const id = ids[index];
      if (id === 0) continue;
      words[index] = this.palette[id] | (isEdge(ids, index, id, width) ? edge : fill);
    }
    this.layerContext.putImageData(picture, 0, 0);
  }
}

function isEdge(ids, index, id, width) {
  const column = index % width;
  return (
    (column > 0 && ids[index - 1] !== id) ||
    (column < width - 1 && ids[index + 1] !== id) ||
    (index >= width && ids[index - width] !== id) ||
    (index + width < ids.length && ids[index + width] !== id)
  );
}
