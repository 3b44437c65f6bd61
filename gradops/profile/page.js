const {timelines, colours} = JSON.parse(document.getElementById("data").textContent);
const LEFT = 90, LANE = 26, HEAD = 22, MEMORY = 60, AXIS = 24;

function time(us) {
  if (us < 0) return "-" + time(-us);
  if (us >= 1e6) return (us / 1e6).toPrecision(3) + " s";
  if (us >= 1e3) return (us / 1e3).toPrecision(3) + " ms";
  return us.toPrecision(3) + " µs";
}

function size(bytes) {
  for (const [name, one] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (bytes >= one) return (bytes / one).toPrecision(3) + " " + name;
  return bytes + " B";
}

function colour(name) {
  if (colours[name]) return colours[name];
  let hash = 0;
  for (const letter of name) hash = (hash * 31 + letter.charCodeAt(0)) % 360;
  return `hsl(${hash} 30% 75%)`;
}

function lanesOf(loop) {
  return loop.lanes.filter(([, events]) => events.length);
}

class Timeline extends Zoomed {
  constructor(box, {title, loops}) {
    super(document.createElement("canvas"), LEFT);
    this.finest = 1;
    this.loops = loops;
    this.mostMemory = Math.max(...loops.flatMap(loop => loop.memory.map(point => point[1])));
    box.innerHTML = `<h2>Timeline, ${title}</h2><p>One typical profiled step of each. Ctrl and scroll to zoom, drag to move,
      point at a bar for its name.</p>`;
    const step = loop => ({start: 0, width: loop.length, length: loop.length});
    this.button(box, "whole step", () => this.align(step));
    this.button(box, "after the backward pass", () => this.align(loop => loop.after));
    box.appendChild(this.canvas);
    this.height = loops.reduce((sum, loop) => sum + HEAD + LANE * lanesOf(loop).length + MEMORY, AXIS);
    this.align(step);
  }

  button(box, text, action) {
    const button = box.appendChild(document.createElement("button"));
    button.textContent = text;
    button.addEventListener("click", action);
  }

  // Shows a part of the steps, which each loop has for itself: `width` from `start` on; `length` stands in the heads.
  align(part) {
    this.part = part;
    const origin = this.origin = loop => part(loop).start;
    const width = 1.02 * Math.max(...this.loops.map(loop => part(loop).width));
    this.least = -Math.max(...this.loops.map(origin));
    this.most = Math.max(width, ...this.loops.map(loop => loop.length - origin(loop)));
    this.show(0, width);
  }

  paint(pen, wide) {
    this.places = [];
    let top = 0;
    for (const loop of this.loops) {
      pen.fillStyle = colour_of("ink");
      pen.font = "600 13px system-ui, sans-serif";
      pen.fillText(`${loop.name}: ${time(this.part(loop).length)}`, 0, top + HEAD / 2);
      pen.font = "12px system-ui, sans-serif";
      top += HEAD;
      for (const [name, events] of lanesOf(loop)) {
        pen.fillStyle = colour_of("pale");
        pen.fillText(name, 0, top + LANE / 2);
        for (const event of events) this.bar(pen, event, this.origin(loop), top, wide);
        top += LANE;
      }
      this.curve(pen, loop, top, wide);
      top += MEMORY;
    }
    pen.fillStyle = colour_of("pale");
    for (let tick = 0; tick <= 4; tick++) {
      const x = this.left + tick / 4 * (wide - this.left);
      pen.textAlign = tick === 4 ? "right" : tick ? "center" : "left";
      pen.fillText(time(this.value(x)), x, top + AXIS / 2);
    }
    pen.textAlign = "left";
  }

  bar(pen, event, origin, top, wide) {
    const [name, begin, length] = event, start = begin - origin;
    const left = Math.max(this.left, this.x(start)), right = Math.min(wide, this.x(start + length));
    if (right <= this.left || left >= wide) return;
    const across = Math.max(0.5, right - left);
    pen.fillStyle = colour(name);
    pen.fillRect(left, top + 2, across, LANE - 4);
    this.places.push({left, right: left + Math.max(across, 2), top, event});
    const label = name.replace(/^(aten::|gradops\.)/, "");
    if (across > pen.measureText(label).width + 8) {
      pen.fillStyle = ["backward", "clip", "gradops.update"].includes(name) ? "white" : "#222";
      pen.fillText(label, left + 4, top + LANE / 2);
    }
  }

  curve(pen, loop, top, wide) {
    const y = bytes => top + MEMORY - 6 - bytes / this.mostMemory * (MEMORY - 18);
    pen.save();
    pen.beginPath();
    pen.rect(this.left, top, wide - this.left, MEMORY);
    pen.clip();
    pen.beginPath();
    let last = loop.memory.length ? loop.memory[0][1] : 0;
    const x = moment => this.x(moment - this.origin(loop));
    pen.moveTo(x(0), y(last));
    for (const [moment, bytes] of loop.memory) {
      pen.lineTo(x(moment), y(last));
      pen.lineTo(x(moment), y(bytes));
      last = bytes;
    }
    pen.lineTo(x(loop.length), y(last));
    pen.strokeStyle = "#009E73";
    pen.lineWidth = 1.5;
    pen.stroke();
    pen.restore();
    pen.fillStyle = colour_of("pale");
    pen.fillText("memory", 0, top + MEMORY / 2 - 6);
    pen.fillText(size(Math.max(0, ...loop.memory.map(point => point[1]))), 0, top + MEMORY / 2 + 8);
  }

  at(x, y) {
    const over = this.places.filter(place => x >= place.left && x <= place.right && y >= place.top &&
      y < place.top + LANE);
    const found = over.sort((a, b) => a.event[2] - b.event[2])[0];
    if (!found) return null;
    const [name, start, length] = found.event;
    return `${name}\n${time(length)}, at ${time(start)}`;
  }
}

for (const box of document.querySelectorAll(".timeline")) new Timeline(box, timelines[box.dataset.index]);
