// An image file becomes a tensor: resized, with its channels where the model has them, and scaled as it was trained.

export const SCALES = {
  unit: { name: "0 to 1", apply: (x) => x / 255 },
  raw: { name: "0 to 255", apply: (x) => x },
  signed: { name: "−1 to 1", apply: (x) => x / 127.5 - 1 },
  imagenet: { name: "ImageNet mean and deviation", apply: (x, c) => (x / 255 - MEAN[c % 3]) / DEVIATION[c % 3] },
};

const MEAN = [0.485, 0.456, 0.406];
const DEVIATION = [0.229, 0.224, 0.225];
const CHANNELS = [1, 3, 4];
const FREE_SIDE = 224;

// Where an image lies in a shape: { layout: "CHW" or "HWC", channels, height, width }, or null where none fits.
// Extents of -1 are free. A batch's extent, if any, is the first of four.
export function imageForm(shape, datatype) {
  if (!/^(FP|BF|UINT8)/.test(datatype) || shape.length < 3 || shape.length > 4) return null;
  const dims = shape.slice(-3);
  const side = (n) => n === -1 || n >= 8;
  if (CHANNELS.includes(dims[0]) && side(dims[1]) && side(dims[2])) return { layout: "CHW", channels: dims[0], height: dims[1], width: dims[2] };
  if (CHANNELS.includes(dims[2]) && side(dims[0]) && side(dims[1])) return { layout: "HWC", channels: dims[2], height: dims[0], width: dims[1] };
  return null;
}

// The sizes that an image is made to where the model leaves them free.
export function sides(form) {
  return { height: form.height === -1 ? FREE_SIDE : form.height, width: form.width === -1 ? FREE_SIDE : form.width };
}

// Draw the file into the canvas at the model's size: the middle of it where `crop`, else all of it, stretched.
export async function drawFile(file, canvas, { height, width }, crop) {
  const image = await createImageBitmap(file);
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  if (crop) {
    const scale = Math.max(width / image.width, height / image.height);
    const [w, t] = [width / scale, height / scale];
    context.drawImage(image, (image.width - w) / 2, (image.height - t) / 2, w, t, 0, 0, width, height);
  } else context.drawImage(image, 0, 0, width, height);
  image.close();
}

// The canvas' pixels as values of the model's layout. One channel is the brightness; `invert`: dark is high.
export function pixels(canvas, form, scale, invert) {
  const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const { channels, layout } = form;
  const found = new Array(channels * width * height);
  const { apply } = SCALES[scale];
  const area = width * height;
  for (let i = 0; i < area; i += 1) {
    for (let c = 0; c < channels; c += 1) {
      const at = i * 4;
      let value = channels === 1 ? 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2] : data[at + c];
      if (invert) value = 255 - value;
      found[layout === "CHW" ? c * area + i : i * channels + c] = apply(value, c);
    }
  }
  return found;
}
