class LayerMap extends Steps {
  constructor(canvas) {
    super(canvas);
    this.lines = data.lines.map(line => ({...line, values: decoded(line.values, Float32Array)}));
    this.choose();
    canvas.addEventListener("click", event => this.click(event));
  }

  choose() {
    const measure = data.measures[chosen("measure").value];
    this.measure = measure;
    this.values = decoded(measure.values, Float32Array);
    this.rows = measure.layers.map((_, row) => row);
    if (chosen("order").value === "worst") {
      const worst = this.rows.map(row => this.unusual(row));
      this.rows.sort((a, b) => worst[b] - worst[a]);
    }
    const colours = new Colours(this.values, measure.logarithmic), pale = [240, 240, 240], broken = [213, 94, 0];
    this.picture = image(measure.columns, this.rows.length, (row, column) => {
      const value = this.cell(this.rows[row], column);
      if (value === Infinity) return broken;
      return Number.isNaN(value) || measure.logarithmic && value <= 0 ? pale : colours.of(value);
    });
    this.rowHeight = Math.max(2, Math.min(20, MAP / this.rows.length));
    this.mapHeight = this.rowHeight * this.rows.length;
    this.height = HEAD + this.mapHeight + this.lines.length * LANE + AXIS;
  }

  cell(row, column) { return this.values[row * this.measure.columns + column]; }

  // How far a layer went above its own middle value; what is not finite is furthest.
  unusual(row) {
    const {columns, logarithmic} = this.measure;
    const known = this.values.slice(row * columns, (row + 1) * columns).filter(value => !Number.isNaN(value));
    if (known.some(value => value === Infinity)) return Infinity;
    const positive = known.filter(value => !logarithmic || value > 0).sort();
    if (!positive.length) return -Infinity;
    const middle = positive[Math.floor(positive.length / 2)], largest = positive[positive.length - 1];
    return logarithmic ? largest / middle : largest;
  }

  paint(pen, wide) {
    pen.fillStyle = INK;
    pen.fillText(this.measure.name + (this.measure.logarithmic ? ", logarithmic" : ""), LEFT, HEAD / 2);
    this.place(pen, this.picture, this.measure.size, HEAD, this.mapHeight, wide);
    const apart = Math.ceil(13 / this.rowHeight);
    for (let place = 0; place < this.rows.length; place += apart) {
      const name = fitted(pen, this.measure.layers[this.rows[place]], LEFT - 20);
      pen.textAlign = "right";
      pen.fillText(name, LEFT - 8, HEAD + (place + 0.5) * this.rowHeight);
      pen.textAlign = "left";
    }
    this.lines.forEach((line, lane) => this.line(pen, line, HEAD + this.mapHeight + lane * LANE, wide, lane));
    this.axis(pen, HEAD + this.mapHeight + this.lines.length * LANE, wide);
  }

  line(pen, {name, values, logarithmic}, top, wide, lane) {
    const scale = logarithmic ? Math.log10 : value => value;
    const first = Math.floor(this.start), last = Math.min(this.most, Math.ceil(this.start + this.width));
    const seen = Array.from(values.slice(first, last), scale).filter(Number.isFinite);
    const low = Math.min(...seen), high = Math.max(...seen), span = high - low || 1;
    pen.fillStyle = INK;
    pen.fillText(name, 0, top + LANE / 2 + 6);
    if (!seen.length) return;
    pen.fillStyle = PALE;
    pen.textAlign = "right";
    const label = value => number(logarithmic ? 10 ** value : value);
    pen.fillText(label(high), LEFT - 8, top + 20);
    pen.fillText(label(low), LEFT - 8, top + LANE - 8);
    pen.textAlign = "left";
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, top, wide - LEFT, LANE);
    pen.clip();
    pen.beginPath();
    let joined = false;
    for (let row = Math.max(0, first - 1); row < Math.min(this.most, last + 1); row++) {
      const value = scale(values[row]), y = top + LANE - 8 - (value - low) / span * (LANE - 28);
      if (Number.isFinite(value)) joined ? pen.lineTo(this.x(row + 0.5), y) : pen.moveTo(this.x(row + 0.5), y);
      joined = Number.isFinite(value);
    }
    pen.strokeStyle = "#0072B2";
    pen.lineWidth = 1.4;
    pen.stroke();
    if (lane === 0) for (const mark of data.marks) this.mark(pen, mark, top);
    pen.restore();
  }

  mark(pen, {name, rows}, top) {
    pen.fillStyle = MARKS[name];
    for (const row of rows) {
      const x = this.x(row + 0.5);
      if (name === "skipped") pen.fillText("×", x - 4, top + 8);
      else pen.fillRect(x - 0.7, top + LANE - 6, 1.4, 6);
    }
  }

  at(x, y) {
    if (x < LEFT || x >= this.canvas.clientWidth) return null;
    const row = Math.min(this.most - 1, Math.floor(this.value(x))), place = Math.floor((y - HEAD) / this.rowHeight);
    if (y >= HEAD && place < this.rows.length) {
      const column = Math.floor(row / this.measure.size), layer = this.rows[place];
      const value = this.cell(layer, column);
      return `${this.measure.layers[layer]}\n${steps(column, this.measure.size)}\n${this.measure.name} ${number(value)}`;
    }
    const line = this.lines[Math.floor((y - HEAD - this.mapHeight) / LANE)];
    if (y < HEAD || !line) return null;
    const marks = data.marks.filter(mark => mark.rows.includes(row)).map(mark => ", " + mark.name).join("");
    return `step ${data.steps[row]}${marks}\n${line.name} ${number(line.values[row])}`;
  }

  click(event) {
    const place = Math.floor((event.offsetY - HEAD) / this.rowHeight);
    const layer = this.measure.layers[this.rows[place]];
    const found = layer === undefined ? -1 : data.histograms.layers.indexOf(layer);
    if (found < 0) return;
    chosen("layer").value = found;
    chosen("layer").dispatchEvent(new Event("change"));
  }
}
