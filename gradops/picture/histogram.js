class Histogram extends Steps {
  constructor(canvas) {
    super(canvas);
    this.height = 300;
    this.choose();
  }

  choose() {
    const {bins, columns, values} = data.histograms, pale = [240, 240, 240];
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
    const {bins, size, edges} = data.histograms, height = this.height - AXIS;
    this.place(pen, this.picture, size, 0, height, wide);
    pen.fillStyle = INK;
    pen.textAlign = "right";
    const middle = Math.floor(edges.length / 2), apart = Math.max(1, Math.floor(edges.length / 8));
    for (let edge = middle % apart; edge < edges.length; edge += apart)
      pen.fillText(number(edges[edge]), LEFT - 8, height - (edge + 1) * this.binHeight);
    pen.fillText("inf, NaN", LEFT - 8, 7);
    pen.textAlign = "left";
    pen.fillText(fitted(pen, data.histograms.layers[this.layer], 130), 0, height / 2);
    this.axis(pen, height, wide);
  }

  at(x, y) {
    const {bins, columns, size} = data.histograms;
    if (x < LEFT || y >= this.height - AXIS || x >= this.canvas.clientWidth) return null;
    const column = Math.floor(Math.min(this.most - 1, this.value(x)) / size), bin = bins - 1 - Math.floor(y / this.binHeight);
    const light = this.values[bin * columns + column];
    const share = light ? number(100 * 10 ** (-4 * (1 - (light - 1) / 254))) + " %" : "none";
    return `${data.histograms.layers[this.layer]}\n${steps(column, size)}\noutputs ${this.range(bin)}: ${share}`;
  }
}
