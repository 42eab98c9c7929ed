"use strict";
const { axes, trials } = JSON.parse(document.getElementById("data").textContent);
const chart = document.getElementById("chart");
const reading = document.getElementById("reading");
const kept = document.getElementById("kept");
const rows = [...document.querySelectorAll("tbody tr")];
// Names of the first axis are to its left; a character is about 7 pixels wide.
const LEFT = Math.max(70, 24 + 7 * Math.max(0, ...(axes[0].names ?? []).map((name) => name.length)));
const TOP = 44, BOTTOM = 18, RIGHT = 70, HEIGHT = 440, GRIP = 20, NEAR = 14;
const score = axes.length - 1; // the last axis colours the lines; trials are sorted, best first
const y = (share) => HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
const share = (at) => (HEIGHT - BOTTOM - at) / (HEIGHT - TOP - BOTTOM);
let x = () => 0;

function draw(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return chart.appendChild(made);
}

function short(value) {
  if (value !== 0 && Math.abs(value) < 0.01) return value.toExponential().replace("e-", "e−");
  return String(Number(value.toPrecision(6)));
}

function steps(low, high) { // round numbers between two values
  const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(last - first + 1, 0) }, (_, index) => (first + index) * step);
}

for (const [index, axis] of axes.entries()) {
  const values = trials.map((trial) => trial.values[index]);
  const scale = axis.chosen && !axis.names ? Math.log : (value) => value;
  const low = scale(Math.min(...values)), high = scale(Math.max(...values));
  axis.at = (value) => (high > low ? (scale(value) - low) / (high - low) : 0.5);
  axis.ticks = [...new Set(values)].sort((a, b) => a - b);
  axis.range = null;
  let room = 0;
  if (axis.chosen) { // trials with equal values are spread, best on top
    const gaps = axis.ticks.slice(1).map((tick, before) => axis.at(tick) - axis.at(axis.ticks[before]));
    room = Math.min(0.1, 0.6 * Math.min(...gaps));
  } else if (high > low) axis.ticks = steps(low, high);
  for (const tick of new Set(values)) {
    const same = trials.filter((trial) => trial.values[index] === tick);
    same.forEach((trial, place) => {
      (trial.places ??= [])[index] = axis.at(tick) + (axis.chosen ? room * (0.5 - (place + 0.5) / same.length) : 0);
    });
  }
}

const path = (trial) => "M" + trial.places.map((place, index) => `${x(index)},${y(place).toFixed(1)}`).join("L");

function layOut() {
  chart.replaceChildren();
  const width = chart.clientWidth, gap = (width - LEFT - RIGHT) / Math.max(axes.length - 1, 1);
  x = (index) => Number((LEFT + gap * index).toFixed(1));
  for (const trial of [...trials].reverse()) {
    trial.line = draw("path", { class: "line", d: path(trial) });
    trial.line.style.setProperty("--share", `${(100 * axes[score].at(trial.values[score])).toFixed(1)}%`);
  }
  for (const [index, axis] of axes.entries()) {
    draw("line", { class: "axis", x1: x(index), x2: x(index), y1: y(1), y2: y(0) });
    draw("text", { class: "label", x: x(index), y: 18, "text-anchor": "middle" }, axis.label);
    let last = Infinity;
    for (const tick of axis.ticks) {
      if (last - y(axis.at(tick)) < 13) continue; // no room for its label
      last = y(axis.at(tick));
      draw("text", { x: x(index) - 8, y: y(axis.at(tick)) + 4, "text-anchor": "end" }, axis.names?.[tick] ?? short(tick));
    }
    axis.brush = draw("rect", { class: "brush", x: x(index) - 8, width: 16, y: 0, height: 0 });
    axis.grip = draw("rect", { class: "grip", x: x(index) - GRIP, width: 2 * GRIP, y: TOP - 12, height: HEIGHT - TOP });
    axis.grip.addEventListener("pointerdown", (event) => grab(event, axis));
  }
  choose();
}

function grab(event, axis) {
  const place = (now) => Math.min(Math.max(share(now.clientY - chart.getBoundingClientRect().top), -0.03), 1.03);
  const start = place(event);
  const move = (now) => {
    const ends = [start, place(now)].sort((a, b) => a - b);
    axis.range = y(ends[0]) - y(ends[1]) < 4 ? null : ends; // a click clears the range
    choose();
  };
  axis.grip.setPointerCapture(event.pointerId);
  axis.grip.onpointermove = move;
  axis.grip.onpointerup = axis.grip.onpointercancel = () => { axis.grip.onpointermove = null; };
  move(event);
}

function choose() {
  for (const trial of trials) {
    const inside = ({ range, at }, index) => !range || (at(trial.values[index]) >= range[0] && at(trial.values[index]) <= range[1]);
    trial.kept = axes.every(inside);
    trial.line.classList.toggle("out", !trial.kept);
    rows[trials.indexOf(trial)].hidden = !trial.kept;
  }
  for (const { range, brush } of axes) {
    brush.setAttribute("y", range ? y(range[1]) : 0);
    brush.setAttribute("height", range ? y(range[0]) - y(range[1]) : 0);
  }
  kept.textContent = `${trials.filter((trial) => trial.kept).length} of ${trials.length} shown`;
}

function point(trial) {
  chart.querySelector(".over")?.remove();
  rows.forEach((row, index) => row.classList.toggle("over", trials[index] === trial));
  const facts = axes.map(({ label, chosen }, index) => (chosen ? "" : `${label[0].toLowerCase()}${label.slice(1)} ${trial?.shown[index]}`));
  reading.textContent = trial ? `${trials.indexOf(trial) + 1}. ${trial.name}: ${facts.filter(Boolean).join(", ")}` : "\u00a0";
  if (trial) draw("path", { class: "line over", d: path(trial) });
}

chart.addEventListener("pointermove", (event) => {
  const box = chart.getBoundingClientRect(), across = event.clientX - box.left, down = event.clientY - box.top;
  const left = Math.min(Math.max(axes.findLastIndex((_, index) => x(index) <= across), 0), Math.max(score - 1, 0));
  const part = score ? (across - x(left)) / (x(left + 1) - x(left)) : 0;
  const height = ({ places }) => y(places[left] + part * ((places[left + 1] ?? places[left]) - places[left]));
  const distances = trials.map((trial) => (trial.kept && part >= 0 && part <= 1 ? Math.abs(height(trial) - down) : Infinity));
  const nearest = distances.indexOf(Math.min(...distances));
  point(distances[nearest] < NEAR ? trials[nearest] : null);
});
chart.addEventListener("pointerleave", () => point(null));
rows.forEach((row, index) => {
  row.addEventListener("pointerenter", () => point(trials[index]));
  row.addEventListener("pointerleave", () => point(null));
});
addEventListener("resize", layOut);
layOut();
