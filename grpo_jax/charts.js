"use strict";
const charts = [...document.querySelectorAll("figure[data-chart]")].map(figure => {
  const [left, right, series] = JSON.parse(figure.dataset.chart);
  const outputs = [...figure.querySelectorAll("output")];
  const plot = figure.querySelector(".plot"), hair = document.createElement("div");
  hair.className = "hair"; hair.hidden = true; plot.append(hair);
  const marks = [...figure.querySelectorAll(".legend s")].map(swatch => {
    const mark = document.createElement("em");
    mark.className = swatch.className.split(" ").pop(); hair.append(mark); return mark;
  });
  return { left, right, series, outputs, plot, hair, marks,
    when: figure.querySelector(".when"), last: outputs.map(o => o.textContent) };
});
const nearest = (points, step) => {
  let a = 0, b = points.length - 1;
  while (b - a > 1) { const m = (a + b) >> 1; if (points[m][0] <= step) a = m; else b = m; }
  return Math.abs(points[a][0] - step) <= Math.abs(points[b][0] - step) ? points[a] : points[b];
};
const show = step => charts.forEach(c => {
  c.hair.hidden = false;
  c.hair.style.left = 100 * (step - c.left) / (c.right - c.left) + "%";
  c.when.textContent = "step " + step.toLocaleString("en");
  c.series.forEach((points, i) => {
    const [at, y, text] = nearest(points, step);
    c.outputs[i].textContent = text;
    c.marks[i].hidden = y === null || at !== step;
    c.marks[i].style.top = y + "%";
  });
});
const leave = () => charts.forEach(c => {
  c.hair.hidden = true; c.when.textContent = "";
  c.outputs.forEach((o, i) => { o.textContent = c.last[i]; });
});
charts.forEach(c => {
  const move = event => {
    const box = c.plot.getBoundingClientRect();
    const step = c.left + (event.clientX - box.left) / box.width * (c.right - c.left);
    show(c.series.map(points => nearest(points, step)[0])
      .reduce((a, b) => Math.abs(b - step) < Math.abs(a - step) ? b : a));
  };
  c.plot.addEventListener("pointermove", move);
  c.plot.addEventListener("pointerdown", move);
  c.plot.addEventListener("pointerleave", leave);
});
