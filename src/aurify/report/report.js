// Shows the values under the pointer, in all charts of a stage at once. Without it the page says the same, but stands still.
const short = (value) => {
  const size = Math.abs(value);
  for (const [unit, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= 1e4 && size >= unit) return Number((value / unit).toPrecision(3)) + suffix;
  return String(Number(value.toPrecision(3)));
};

const nearest = (steps, step) => {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] > step) high = middle; else low = middle;
  }
  return step - steps[low] <= steps[high] - step ? low : high;
};

function chart(figure) {
  const [first, last, left, right] = JSON.parse(figure.dataset.reach);
  const series = JSON.parse(figure.dataset.series);
  const values = [...figure.querySelectorAll(".values b")];
  const final = values.map((value) => value.textContent);
  const svg = figure.querySelector("svg"), line = svg.querySelector(".cursor line"), label = svg.querySelector(".cursor text");
  return {
    svg,
    stepAt(clientX) {
      const box = svg.getBoundingClientRect();
      const x = ((clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      return first + (Math.min(1, Math.max(0, (x - left) / (right - left)))) * (last - first);
    },
    show(step) {
      figure.classList.toggle("on", step !== null);
      if (step === null) return values.forEach((value, k) => (value.textContent = final[k]));
      const at = series[0][0][nearest(series[0][0], step)];
      const x = last > first ? left + ((at - first) / (last - first)) * (right - left) : (left + right) / 2;
      line.setAttribute("x1", x), line.setAttribute("x2", x), label.setAttribute("x", x);
      label.textContent = `step ${at}`;
      series.forEach(([steps, known], k) => (values[k].textContent = short(known[nearest(steps, step)])));
    },
  };
}

for (const section of document.querySelectorAll("section")) {
  const charts = [...section.querySelectorAll("figure[data-series]")].map(chart);
  for (const one of charts) {
    one.svg.addEventListener("pointermove", (event) => {
      const step = one.stepAt(event.clientX);
      charts.forEach((other) => other.show(step));
    });
    one.svg.addEventListener("pointerleave", () => charts.forEach((other) => other.show(null)));
  }
}
