// A colour of the page's style, which is another in the dark.
const colour_of = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

// A canvas over a range of values: Ctrl and scroll to zoom, drag to move, point for a hint. What extends it has `height`,
// `least` and `most`, the bounds of the range, and `finest`, the narrowest one, draws by `paint(pen, wide)`, and says by
// `at(x, y)` what the pointer is on, or nothing.
class Zoomed {
  constructor(canvas, left) {
    this.canvas = canvas;
    this.widest = left;
    this.hint = document.getElementById("hint");
    this.listen();
  }

  // Where the range begins: the names on the left have at most three tenths of a narrow window.
  get left() { return Math.min(this.widest, 0.3 * this.canvas.clientWidth); }

  x(value) { return this.left + (value - this.start) / this.width * (this.canvas.clientWidth - this.left); }
  value(x) { return this.start + (x - this.left) / (this.canvas.clientWidth - this.left) * this.width; }

  show(start, end) {
    const width = Math.min(this.most - this.least, Math.max(this.finest, end - start));
    this.start = Math.min(Math.max(this.least, start), this.most - width);
    this.width = width;
    this.draw();
  }

  draw() {
    const scale = window.devicePixelRatio || 1, canvas = this.canvas, wide = canvas.clientWidth;
    canvas.style.height = this.height + "px";
    canvas.width = wide * scale;
    canvas.height = this.height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    this.paint(pen, wide);
  }

  listen() {
    const canvas = this.canvas;
    let held = null;
    canvas.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return;  // the page scrolls
      event.preventDefault();
      const at = this.value(event.offsetX), factor = Math.exp(event.deltaY * 0.002);
      this.show(at - (at - this.start) * factor, at + (this.start + this.width - at) * factor);
    }, {passive: false});
    canvas.addEventListener("pointerdown", event => {
      held = {x: event.offsetX, start: this.start};
      if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
    canvas.addEventListener("pointerleave", () => { this.hint.style.display = "none"; });
    canvas.addEventListener("pointermove", event => {
      if (held) {
        const start = held.start - (event.offsetX - held.x) / (canvas.clientWidth - this.left) * this.width;
        this.show(start, start + this.width);
        return;
      }
      this.point(event);
    });
    window.addEventListener("resize", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.choose?.(); this.draw(); });
  }

  point(event) {
    const hint = this.hint, text = this.at(event.offsetX, event.offsetY);
    hint.style.display = text ? "block" : "none";
    if (!text) return;
    hint.textContent = text;
    hint.style.left = Math.min(event.clientX + 14, innerWidth - hint.offsetWidth - 8) + "px";
    hint.style.top = event.clientY + 14 + "px";
  }
}
