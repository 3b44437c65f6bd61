function options(name, labels) {
  labels.forEach((label, index) => chosen(name).add(new Option(label, index)));
}

options("measure", data.measures.map(measure => measure.name));
options("layer", data.histograms.labels);
if (data.accused !== null) chosen("layer").value = data.accused;
Steps.all.push(new LayerMap(chosen("map")));
if (data.histograms.layers.length) Steps.all.push(new Histogram(chosen("histogram")));
else chosen("outputs").remove();
const [map, histogram] = Steps.all;
for (const name of ["measure", "order"])
  chosen(name).addEventListener("change", () => { map.choose(); map.draw(); });
chosen("layer")?.addEventListener("change", () => { histogram.choose(); histogram.draw(); });
chosen("all").addEventListener("click", () => map.show(0, map.most));
map.show(0, map.most);
