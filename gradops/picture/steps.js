const data = JSON.parse(document.getElementById("data").textContent);
const LEFT = 230, MAP = 560, LANE = 74, AXIS = 24, HEAD = 22;
const MARKS = {clipped: "#009E73", skipped: "#D55E00"}, BROKEN = [213, 94, 0], EVENT = "#CC79A7";
const chosen = name => document.getElementById(name);

function decoded(text, Type) {
  return new Type(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);
}

function number(value) {
  if (Number.isNaN(value)) return "none";
  if (!Number.isFinite(value)) return "inf or NaN";
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(3));
}

function steps(column, size) {
  const first = column * size, last = Math.min(first + size, data.steps.length) - 1;
  return size > 1 ? `steps ${data.steps[first]} to ${data.steps[last]} (largest)` : `step ${data.steps[first]}`;
}

// A colour of the style, such as #f0f0f0, as three numbers.
const parts_of = name => [1, 3, 5].map(at => parseInt(colour_of(name).slice(at, at + 2), 16));

function fitted(pen, name, width) {
  if (pen.measureText(name).width <= width) return name;
  let tail = name;
  while (tail && pen.measureText("…" + tail).width > width) tail = tail.slice(1);
  return "…" + tail;
}

// Numbers from 0 to 1 by which values are coloured; the lowest hundredth shares one colour, so that dying layers leave
// the others theirs.
class Colours {
  constructor(values, logarithmic) {
    this.scale = logarithmic ? Math.log10 : value => value;
    const known = Array.from(values, this.scale).filter(Number.isFinite).sort((a, b) => a - b);
    this.low = logarithmic ? known[Math.floor(known.length / 100)] : 0;
    this.high = logarithmic ? Math.max(known[known.length - 1], this.low + 0.1) : 1;
  }

  of(value) {
    const place = (this.scale(value) - this.low) / (this.high - this.low);
    return data.palette[Math.round(255 * Math.min(1, Math.max(0, place)))];
  }
}

function image(wide, high, colour) {
  const canvas = document.createElement("canvas");
  canvas.width = wide;
  canvas.height = high;
  const pen = canvas.getContext("2d"), pixels = pen.createImageData(wide, high);
  for (let row = 0; row < high; row++)
    for (let column = 0; column < wide; column++)
      pixels.data.set([...colour(row, column), 255], 4 * (row * wide + column));
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

// Panels over the steps of the run, which keep to each other when zoomed.
class Steps extends Zoomed {
  constructor(canvas) {
    super(canvas, LEFT);
    this.least = 0;
    this.most = data.steps.length;
    this.finest = Math.min(4, this.most);
    this.start = 0;
    this.width = this.most;
  }

  show(start, end) {
    super.show(start, end);
    for (const other of Steps.all)
      if (other !== this) { other.start = this.start; other.width = this.width; other.draw(); }
  }

  // An image whose columns stand for `size` steps each.
  place(pen, picture, size, top, height, wide) {
    pen.save();
    pen.beginPath();
    pen.rect(this.left, top, wide - this.left, height);
    pen.clip();
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, this.x(0), top, this.x(picture.width * size) - this.x(0), height);
    pen.restore();
  }

  // A dotted line at each moment that the report names.
  events(pen, top, height) {
    pen.save();
    pen.strokeStyle = EVENT;
    pen.lineWidth = 1.2;
    pen.setLineDash([3, 3]);
    for (const {row} of data.events) {
      const x = this.x(row + 0.5);
      if (x < this.left) continue;
      pen.beginPath();
      pen.moveTo(x, top);
      pen.lineTo(x, top + height);
      pen.stroke();
    }
    pen.restore();
  }

  axis(pen, top, wide) {
    pen.fillStyle = colour_of("pale");
    for (let tick = 0; tick <= 4; tick++) {
      const row = Math.min(this.most - 1, Math.floor(this.start + tick / 4 * this.width));
      pen.textAlign = tick === 4 ? "right" : tick ? "center" : "left";
      pen.fillText((tick ? "" : "step ") + data.steps[row], this.left + tick / 4 * (wide - this.left), top + AXIS / 2);
    }
    pen.textAlign = "left";
  }
}
Steps.all = [];
