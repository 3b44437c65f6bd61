class Histogram extends Steps {
  constructor(canvas) {
    super(canvas);
    this.height = 300;
    this.choose();
  }

  choose() {
    const {bins, columns, values} = data.histograms, pale = parts_of("nothing");
    this.layer = Number(chosen("layer").value);
    this.values = decoded(values[this.layer], Uint8Array);
    this.picture = image(columns, bins, (row, column) => {
      const share = this.values[(bins - 1 - row) * columns + column];
      return share ? data.palette[share] : pale;
    });
  }

  get binHeight() { return (this.height - AXIS) / data.histograms.bins; }

  range(bin) {
    const {edges, bins} = data.histograms;
    if (bin === bins - 1) return "inf and NaN";
    if (bin === 0) return `below ${number(edges[0])}`;
    return bin === edges.length ? `${number(edges[bin - 1])} and above` : `${number(edges[bin - 1])} to ${number(edges[bin])}`;
  }

  paint(pen, wide) {
    const {size} = data.histograms, height = this.height - AXIS;
    this.place(pen, this.picture, size, 0, height, wide);
    this.events(pen, 0, height);
    pen.fillStyle = colour_of("ink");
    pen.textAlign = "right";
    for (const [place, label] of data.histograms.ticks)
      pen.fillText(label, this.left - 8, height - (place + 0.5) * this.binHeight);
    pen.fillText("inf, NaN", this.left - 8, 7);
    pen.textAlign = "left";
    this.axis(pen, height, wide);
  }

  at(x, y) {
    const {bins, columns, size} = data.histograms;
    if (x < this.left || y >= this.height - AXIS || x >= this.canvas.clientWidth) return null;
    const column = Math.floor(Math.min(this.most - 1, this.value(x)) / size), bin = bins - 1 - Math.floor(y / this.binHeight);
    const light = this.values[bin * columns + column];
    const share = light ? number(100 * 10 ** (-4 * (1 - (light - 1) / 254))) + " %" : "none";
    return `${data.histograms.layers[this.layer]}\n${steps(column, size)}\noutputs ${this.range(bin)}: ${share}`;
  }
}
