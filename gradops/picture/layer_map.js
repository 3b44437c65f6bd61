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
    const colours = this.colours = new Colours(this.values, measure.logarithmic), pale = parts_of("nothing");
    this.picture = image(measure.columns, this.rows.length, (row, column) => {
      const value = this.cell(this.rows[row], column);
      if (value === Infinity) return BROKEN;
      return Number.isNaN(value) || measure.logarithmic && value <= 0 ? pale : colours.of(value);
    });
    this.rowHeight = Math.max(2, Math.min(20, MAP / this.rows.length));
    this.mapHeight = this.rowHeight * this.rows.length;
    this.height = HEAD + this.mapHeight + this.lines.length * LANE + AXIS;
  }

  cell(row, column) { return this.values[row * this.measure.columns + column]; }

  // How far a layer went above its own middle value; what is not finite is furthest, then what died.
  unusual(row) {
    const {columns, logarithmic} = this.measure, all = this.values.slice(row * columns, (row + 1) * columns);
    const known = all.filter(value => !Number.isNaN(value));
    if (known.some(value => value === Infinity)) return Infinity;
    const lives = value => value > 0, end = all.slice(-Math.max(1, Math.floor(columns / 10)));
    if (logarithmic && known.length && !end.some(lives)) return 1e300 - all.findLastIndex(lives) * 1e290;
    const positive = known.filter(value => !logarithmic || value > 0).sort();
    if (!positive.length) return -Infinity;
    const middle = positive[Math.floor(positive.length / 2)], largest = positive[positive.length - 1];
    return logarithmic ? largest / middle : largest;
  }

  paint(pen, wide) {
    pen.fillStyle = colour_of("ink");
    pen.fillText(fitted(pen, this.measure.name, wide - 210), 0, HEAD / 2);
    this.bar(pen, wide);
    this.place(pen, this.picture, this.measure.size, HEAD, this.mapHeight, wide);
    this.events(pen, HEAD, this.mapHeight);
    const apart = Math.ceil(13 / this.rowHeight);
    pen.fillStyle = colour_of("ink");
    for (let place = 0; place < this.rows.length; place += apart) {
      const name = fitted(pen, this.measure.labels[this.rows[place]], this.left - 12);
      pen.textAlign = "right";
      pen.fillText(name, this.left - 8, HEAD + (place + 0.5) * this.rowHeight);
      pen.textAlign = "left";
    }
    this.lines.forEach((line, lane) => this.line(pen, line, HEAD + this.mapHeight + lane * LANE, wide, lane));
    this.axis(pen, HEAD + this.mapHeight + this.lines.length * LANE, wide);
  }

  // What the colours stand for, in the corner.
  bar(pen, wide) {
    const {low, high} = this.colours, across = 80, left = wide - across - 64;
    if (!Number.isFinite(low) || left < this.left) return;
    for (let at = 0; at < across; at++) {
      pen.fillStyle = `rgb(${data.palette[Math.round(255 * at / (across - 1))].join(" ")})`;
      pen.fillRect(left + at, 5, 1.5, HEAD - 10);
    }
    const value = place => number(this.measure.logarithmic ? 10 ** place : place);
    pen.fillStyle = colour_of("pale");
    pen.textAlign = "right";
    pen.fillText(value(low), left - 5, HEAD / 2);
    pen.textAlign = "left";
    pen.fillText(value(high), left + across + 5, HEAD / 2);
  }

  line(pen, {name, values, logarithmic}, top, wide, lane) {
    const scale = logarithmic ? Math.log10 : value => value;
    const first = Math.floor(this.start), last = Math.min(this.most, Math.ceil(this.start + this.width));
    const seen = Array.from(values.slice(first, last), scale).filter(Number.isFinite);
    const low = Math.min(...seen), high = Math.max(...seen), span = high - low || 1;
    pen.fillStyle = colour_of("ink");
    pen.fillText(fitted(pen, name, this.left - 8), 0, top + LANE / 2 + 6);
    if (!seen.length) return;
    pen.fillStyle = colour_of("pale");
    pen.textAlign = "right";
    const label = value => number(logarithmic ? 10 ** value : value);
    pen.fillText(label(high), this.left - 8, top + 20);
    pen.fillText(label(low), this.left - 8, top + LANE - 8);
    pen.textAlign = "left";
    pen.save();
    pen.beginPath();
    pen.rect(this.left, top, wide - this.left, LANE);
    pen.clip();
    pen.beginPath();
    let joined = false;
    for (let row = Math.max(0, first - 1); row < Math.min(this.most, last + 1); row++) {
      const value = scale(values[row]), y = top + LANE - 8 - (value - low) / span * (LANE - 28);
      if (Number.isFinite(value)) joined ? pen.lineTo(this.x(row + 0.5), y) : pen.moveTo(this.x(row + 0.5), y);
      joined = Number.isFinite(value);
    }
    pen.strokeStyle = colour_of("curve");
    pen.lineWidth = 1.4;
    pen.stroke();
    this.events(pen, top, LANE);
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
    if (x < this.left || x >= this.canvas.clientWidth) return null;
    const row = Math.min(this.most - 1, Math.floor(this.value(x))), place = Math.floor((y - HEAD) / this.rowHeight);
    if (y >= HEAD && place < this.rows.length) {
      const column = Math.floor(row / this.measure.size), layer = this.rows[place];
      const value = this.cell(layer, column);
      return `${this.measure.layers[layer]}\n${steps(column, this.measure.size)}\n${this.measure.name} ${number(value)}`;
    }
    const event = data.events.filter(({row: at}) => at === row).map(({name}) => "\n" + name).join("");
    const line = this.lines[Math.floor((y - HEAD - this.mapHeight) / LANE)];
    if (y < HEAD || !line) return null;
    const marks = data.marks.filter(mark => mark.rows.includes(row)).map(mark => ", " + mark.name).join("");
    return `step ${data.steps[row]}${marks}\n${line.name} ${number(line.values[row])}${event}`;
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
