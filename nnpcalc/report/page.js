"use strict";
// Shows the frames in #data with 3Dmol, and their place as a cursor in every plot.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const slider = find("slider"), select = find("replica"), play = find("play");
  let frames = [], viewer = null, model = null, timer = null;

  function drawCell(cell) {
    viewer.removeAllShapes();
    if (!cell) return;
    const corner = (i, j, k) => ({
      x: i * cell[0][0] + j * cell[1][0] + k * cell[2][0],
      y: i * cell[0][1] + j * cell[1][1] + k * cell[2][1],
      z: i * cell[0][2] + j * cell[1][2] + k * cell[2][2],
    });
    for (const [p, q] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
      for (const ends of [
        [corner(0, p, q), corner(1, p, q)],
        [corner(p, 0, q), corner(p, 1, q)],
        [corner(p, q, 0), corner(p, q, 1)],
      ]) viewer.addLine({ start: ends[0], end: ends[1], color: "gray" });
    }
  }

  function moveCursors(at) {
    for (const plot of document.querySelectorAll(".plot")) {
      const { left, right, low, high } = plot.dataset;
      const x = +left + (right - left) * (at - low) / (high - low);
      const cursor = plot.querySelector(".cursor");
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
  }

  async function show(k) {
    const frame = frames[k];
    slider.value = k;
    find("place").textContent = `${data.axis}: ${frame.at.toPrecision(5)}`;
    moveCursors(frame.at);
    if (viewer) {
      await model.setFrame(k);
      drawCell(frame.cell);
      viewer.render();
    }
    document.body.dataset.frame = k;
  }

  function chooseReplica(n) {
    frames = data.replicas[n].frames;
    slider.max = frames.length - 1;
    if (viewer) {
      viewer.removeAllModels();
      model = viewer.addModelsAsFrames(frames.map((frame) => frame.xyz).join(""), "xyz");
      viewer.setStyle({}, { stick: { radius: 0.12 }, sphere: { scale: 0.24 } });
      drawCell(frames[0].cell);
      viewer.zoomTo();
    }
    return show(0);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "play";
  }

  function toggle() {
    if (timer) return stop();
    play.textContent = "stop";
    timer = setInterval(() => show((+slider.value + 1) % frames.length), 60);
  }

  try {
    viewer = $3Dmol.createViewer(find("viewer"), { backgroundColor: "white", antialias: true });
  } catch (error) {
    viewer = null;
  }
  if (!viewer) {
    find("trouble").textContent = "This browser has no WebGL: the plots are there, the 3-D view is not.";
    find("trouble").hidden = false;
  }
  data.replicas.forEach((replica, n) => select.add(new Option(replica.name, n)));
  find("choice").hidden = data.replicas.length < 2;
  play.addEventListener("click", toggle);
  slider.addEventListener("input", () => { stop(); show(+slider.value); });
  select.addEventListener("change", () => { stop(); chooseReplica(+select.value); });
  for (const plot of document.querySelectorAll(".plot")) {
    plot.addEventListener("click", (event) => {
      const { left, right, low, high } = plot.dataset;
      const point = new DOMPoint(event.clientX, event.clientY)
        .matrixTransform(plot.getScreenCTM().inverse());
      const at = +low + (high - low) * (point.x - left) / (right - left);
      const away = frames.map((frame) => Math.abs(frame.at - at));
      stop();
      show(away.indexOf(Math.min(...away)));
    });
  }
  chooseReplica(0).then(() => { document.body.dataset.ready = viewer ? "drawn" : "plots"; });
})();
