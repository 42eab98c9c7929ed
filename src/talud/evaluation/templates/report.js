"use strict";
// The same hatching as in the images.
const hatch = document.createElement("canvas");
hatch.width = hatch.height = 16;
const ink = hatch.getContext("2d");
ink.fillStyle = "#dedee2";
ink.fillRect(0, 0, 16, 16);
ink.fillStyle = "#c4c4ca";
for (let row = 0; row < 16; row += 1) for (let i = 0; i < 5; i += 1) ink.fillRect((i - row + 16) % 16, row, 1, 1);

// All canvases of a viewer draw one view: centre in image pixels, and zoom relative to the whole area.
for (const viewer of document.querySelectorAll(".viewer")) {
  const width = Number(viewer.dataset.width), height = Number(viewer.dataset.height);
  const metres = Number(viewer.dataset.metres), places = JSON.parse(viewer.dataset.places);
  const blocks = JSON.parse(viewer.dataset.blocks);
  const canvases = [...viewer.querySelectorAll("canvas")];
  const outlines = new Path2D(viewer.querySelector("path.outlines").getAttribute("d"));
  const output = viewer.querySelector("output"), outlined = viewer.querySelector("[data-do=outlines]");
  const blocked = viewer.querySelector("[data-do=blocks]");
  const whole = { x: width / 2, y: height / 2, zoom: 1 };
  let view = { ...whole }, place = -1, queued = false;

  const images = new Map([...viewer.querySelectorAll("img")].map((image) => [image.dataset.name, image]));
  const layers = new Map(canvases.map((canvas) =>
    [canvas, JSON.parse(canvas.dataset.layers).map((name) => images.get(name))]));

  const scale = (canvas, zoom = view.zoom) => zoom * Math.min(canvas.clientWidth / width, canvas.clientHeight / height);

  function show(change) {
    const zoom = Math.min(Math.max(change.zoom ?? view.zoom, 1), Math.max(8, Math.max(width, height) / 16));
    const inside = (value, side) => Math.min(Math.max(value, side / 2 / zoom), side - side / 2 / zoom);
    view = { zoom, x: inside(change.x ?? view.x, width), y: inside(change.y ?? view.y, height) };
    viewer.dataset.view = `${view.x.toFixed(2)} ${view.y.toFixed(2)} ${view.zoom.toFixed(3)}`;
    viewer.classList.toggle("zoomed", view.zoom > 1);
    if (!queued) requestAnimationFrame(draw);
    queued = true;
  }

  function draw() {
    queued = false;
    for (const canvas of canvases) drawMap(canvas);
  }

  function drawMap(canvas) {
    const ratio = window.devicePixelRatio || 1, k = scale(canvas) * ratio;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(k, 0, 0, k, canvas.width / 2 - view.x * k, canvas.height / 2 - view.y * k);
    pen.imageSmoothingEnabled = k < 1;
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = pen.createPattern(hatch, "repeat"); // parts without an image have no data
    pen.fillRect(0, 0, width, height);
    for (const image of layers.get(canvas)) pen.drawImage(image, 0, 0, width, height);
    if (outlined?.checked) drawOutlines(pen, k / ratio);
    if (blocked?.checked) drawBlocks(pen, k / ratio);
    drawScaleBar(pen, canvas, ratio);
  }

  function drawOutlines(pen, k) {
    pen.lineJoin = "round";
    for (const [colour, points] of [["rgb(0 0 0 / 0.7)", 3], ["#ffdd33", 1.4]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = points / k;
      pen.stroke(outlines);
    }
  }

  function drawBlocks(pen, k) {
    for (const [colour, points, dash] of [["rgb(255 255 255 / 0.8)", 3, []], ["#111", 1.5, [5 / k, 4 / k]]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = points / k;
      pen.setLineDash(dash);
      for (const [left, top, right, bottom] of blocks) pen.strokeRect(left, top, right - left, bottom - top);
    }
    pen.setLineDash([]);
  }

  function drawScaleBar(pen, canvas, ratio) {
    const perMetre = scale(canvas) / metres, longest = Math.min(canvas.clientWidth / 3, 140) / perMetre;
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map((step) => step * power).find((step) => step <= longest);
    const label = length >= 1000 ? `${length / 1000} km` : `${length} m`;
    const y = canvas.clientHeight - 12;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = "600 12px system-ui, sans-serif";
    pen.lineJoin = "round";
    for (const [colour, points] of [["rgb(255 255 255 / 0.85)", 5], ["#111", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = points;
      pen.beginPath();
      pen.moveTo(12, y);
      pen.lineTo(12 + length * perMetre, y);
      pen.stroke();
    }
    pen.lineWidth = 3;
    pen.strokeStyle = "rgb(255 255 255 / 0.85)";
    pen.strokeText(label, 12, y - 7);
    pen.fillStyle = "#111";
    pen.fillText(label, 12, y - 7);
  }

  function zoomAt(canvas, clientX, clientY, factor) {
    const box = canvas.getBoundingClientRect(), before = scale(canvas);
    const dx = clientX - box.left - box.width / 2, dy = clientY - box.top - box.height / 2;
    const zoom = Math.max(view.zoom * factor, 1), after = scale(canvas, zoom);
    show({ zoom, x: view.x + dx / before - dx / after, y: view.y + dy / before - dy / after });
  }

  function goTo(step) {
    place = (place + step + places.length) % places.length;
    if (place < 0) place = places.length - 1;
    const [left, top, right, bottom] = places[place];
    const zoom = Math.min(width / Math.max(right - left, 24), height / Math.max(bottom - top, 24)) / 3;
    show({ x: (left + right) / 2, y: (top + bottom) / 2, zoom });
    output.value = `${place + 1} of ${places.length}`;
  }

  function move(columns, rows) {
    show({ x: view.x + columns * width / view.zoom / 8, y: view.y + rows * height / view.zoom / 8 });
  }

  const actions = {
    in: () => show({ zoom: view.zoom * 1.5 }),
    out: () => show({ zoom: view.zoom / 1.5 }),
    whole: () => show(whole),
    next: () => goTo(1),
    previous: () => goTo(place < 0 ? 0 : -1),
    outlines: () => show({}),
    blocks: () => show({}),
  };
  const keys = {
    "+": actions.in, "=": actions.in, "-": actions.out, 0: actions.whole, Escape: () => viewer.blur(),
    ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
  };

  viewer.addEventListener("click", (event) => {
    const control = event.target.closest("[data-do]"), enlarge = event.target.closest(".enlarge");
    if (control) actions[control.dataset.do]();
    if (!enlarge) return;
    enlarge.setAttribute("aria-pressed", enlarge.closest("figure").classList.toggle("large"));
    show({});
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target !== viewer || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  const fingers = new Map();
  for (const canvas of canvases) {
    canvas.addEventListener("wheel", (event) => {
      const active = viewer.contains(document.activeElement) || event.ctrlKey;
      if (!active || (view.zoom === 1 && event.deltaY > 0 && !event.ctrlKey)) return;
      event.preventDefault();
      zoomAt(canvas, event.clientX, event.clientY, Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 250));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      viewer.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      fingers.set(event.pointerId, event);
      const k = scale(canvas), share = other ? 0.5 : 1;
      show({ x: view.x - share * (event.clientX - last.clientX) / k, y: view.y - share * (event.clientY - last.clientY) / k });
      if (!other) return;
      const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      zoomAt(canvas, (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2, apart(event) / Math.max(apart(last), 1));
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("dblclick", (event) => zoomAt(canvas, event.clientX, event.clientY, 2));
  }
  // Safari zooms the page unless two-finger touches are handled here.
  viewer.addEventListener("touchmove", (event) => event.touches.length > 1 && event.preventDefault(), { passive: false });

  new ResizeObserver(() => show({})).observe(viewer);
  Promise.all([...images.values()].map((image) => image.decode())).then(() => {
    viewer.dataset.ready = "yes";
    show({});
  });
}
