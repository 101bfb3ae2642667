"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector) => document.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  document.documentElement.classList.add("ready");

  // Dark or light: the system's, until someone chooses.
  $("#theme").addEventListener("click", () => {
    const style = document.documentElement.style;
    const dark = style.colorScheme ? style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    style.colorScheme = dark ? "light" : "dark";
  });

  // Charts of one level and batch at a time.
  const show = (value) => all(".view").forEach((view) => view.classList.toggle("off", view.dataset.view !== value));
  all("input[name=view]").forEach((input) => input.addEventListener("change", () => show(input.value)));
  show(($("input[name=view]:checked") || { value: "0" }).value);

  // Tables: sort by a heading, hide rows by words.
  const keyOf = (cell) => (cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v);
  const order = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured comes last
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = (heading) => {
    const table = heading.closest("table");
    const upwards = heading.getAttribute("aria-sort") !== "ascending";
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    const column = heading.cellIndex;
    const rows = all("tbody tr", table).map((row) => [keyOf(row.cells[column]), row]);
    rows.sort(([a], [b]) => (a === "" || b === "" || upwards ? order(a, b) : order(b, a)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  all(".sortable thead th").forEach((heading) => heading.addEventListener("click", () => sort(heading)));
  const filter = $("#filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = all("#table tbody tr");
    rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
    $("#filtered").textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows.` : "";
  });

  // Commands to copy, data to keep.
  all(".copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    const range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    try { await navigator.clipboard.writeText(code.textContent); } catch { document.execCommand("copy"); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));
  const pixelsOf = (number) => (number === null ? null : data.images[number]);
  const whole = (content) => ({ ...content, pictures: content.pictures.map((picture) => ({
    ...picture,
    photo: pixelsOf(picture.photo),
    truth: pixelsOf(picture.truth),
    masks: Object.fromEntries(Object.entries(picture.masks).map(([id, number]) => [id, pixelsOf(number)])),
  })) });
  all(".download").forEach((button) => button.addEventListener("click", () => {
    const file = data.files[button.dataset.file];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(whole(file.content), null, 1)], { type: "application/json" }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }));

  // On paper everything is open.
  const paper = matchMedia("print");
  const unfold = () => all("details").forEach((each) => { each.open = true; });
  window.addEventListener("beforeprint", unfold);
  paper.addEventListener("change", (event) => { if (event.matches) unfold(); });

  // Pictures: everything is drawn from the data, each image decoded once.
  const chooser = $("#picture");
  if (!chooser) return;
  const decoded = new Map();
  const image = (number) => {
    if (!decoded.has(number)) {
      const text = data.images[number];
      const element = new Image();
      element.src = `data:image/${text.startsWith("/9j/") ? "jpeg" : "png"};base64,${text}`;
      decoded.set(number, element.decode().then(() => element));
    }
    return decoded.get(number);
  };
  const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = async (number, picture) => {
    const element = await image(number);
    scratch.canvas.width = picture.width;
    scratch.canvas.height = picture.height;
    scratch.imageSmoothingEnabled = false;
    scratch.drawImage(element, 0, 0, picture.width, picture.height);
    return scratch.getImageData(0, 0, picture.width, picture.height);
  };
  const pictures = [...chooser.options].map(({ dataset }) => ({
    document: Number(dataset.document),
    ...data.files[dataset.document].content.pictures[dataset.index],
  }));
  const subjectsOf = (picture) => data.subjects
    .map((subject, number) => ({ ...subject, number }))
    .filter((subject) => subject.document === picture.document && Object.hasOwn(picture.masks, subject.id));
  const layersOf = (picture) => [
    { key: "photo", name: "photograph", mask: null },
    ...(picture.truth === null ? [] : [{ key: "truth", name: "truth", mask: picture.truth }]),
    ...subjectsOf(picture).map((each) => ({ key: String(each.number), name: each.name, mask: picture.masks[each.id] })),
  ];
  const referenceFor = (picture, number) => {
    const model = number === undefined ? null : modelOf(data.subjects[number]);
    const own = subjectsOf(picture).filter((each) => each.reference && (model === null || modelOf(each) === model));
    return own.length ? String(own[0].number) : picture.truth === null ? "photo" : "truth";
  };
  const modelOf = (subject) => data.files[subject.document].content.subjects.find((each) => each.id === subject.id).model;

  const tint = (photo, mask) => {
    for (let i = 0; i < photo.data.length; i += 4) {
      if (!(mask.data[i] | mask.data[i + 1] | mask.data[i + 2])) continue; // black stands for what is not marked
      for (let c = 0; c < 3; c += 1) photo.data[i + c] = 0.45 * photo.data[i + c] + 0.55 * mask.data[i + c];
    }
    return photo;
  };
  const unlike = (a, b, i) => a.data[i] !== b.data[i] || a.data[i + 1] !== b.data[i + 1] || a.data[i + 2] !== b.data[i + 2];
  const highlight = (photo, a, b) => {
    for (let i = 0; i < photo.data.length; i += 4) {
      const grey = 0.35 * (0.3 * photo.data[i] + 0.59 * photo.data[i + 1] + 0.11 * photo.data[i + 2]);
      photo.data.set(unlike(a, b, i) ? [255, 196, 0] : [grey, grey, grey], i);
    }
    return photo;
  };
  const put = (canvas, pixels) => {
    canvas.width = pixels.width;
    canvas.height = pixels.height;
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(pixels, 0, 0);
  };

  const sides = [$("#left"), $("#right")];
  const fill = (select, layers, wanted) => {
    select.replaceChildren(...layers.map(({ key, name }) => new Option(name, key)));
    select.value = wanted;
    if (select.selectedIndex < 0) select.selectedIndex = layers.length - 1;
  };
  const offer = (left, right) => {
    const picture = pictures[chooser.value];
    fill(sides[0], layersOf(picture), left);
    fill(sides[1], layersOf(picture), right);
  };
  let turn = 0;
  const draw = async () => {
    const mine = (turn += 1);
    const picture = pictures[chooser.value];
    const how = $("input[name=how]:checked").value;
    const [left, right] = sides.map((select) => layersOf(picture).find((layer) => layer.key === select.value));
    const photo = () => rgba(picture.photo, picture);
    const masks = await Promise.all([left, right].map(({ mask }) => (mask === null ? null : rgba(mask, picture))));
    const drawn = [];
    for (const mask of masks) {
      if (how === "difference" && masks[0] && masks[1]) drawn.push(mask === masks[0] && drawn.length === 0 ? tint(await photo(), mask) : highlight(await photo(), masks[0], masks[1]));
      else if (mask === null) drawn.push(await photo());
      else drawn.push(how === "mask" ? mask : tint(await photo(), mask));
    }
    if (mine !== turn) return;
    put($("#over"), drawn[0]);
    put($("#under"), drawn[1]);
    const names = how === "difference" && masks[0] && masks[1] ? [left.name, "differs"] : [left.name, right.name];
    [$("#left-name").textContent, $("#right-name").textContent] = names;
    $("#over").setAttribute("aria-label", `${picture.name}: ${names[0]}`);
    $("#under").setAttribute("aria-label", `${picture.name}: ${names[1]}`);
    $("#differs").textContent = told(masks, left, right);
    legend(picture, sides[1].value in data.subjects ? sides[1].value : sides[0].value);
    $("#compare").dataset.drawn = `${chooser.value} ${left.key} ${right.key} ${how}`;
  };
  const told = ([a, b], left, right) => {
    if (!a || !b) return "";
    const pixels = a.width * a.height;
    let count = 0;
    for (let i = 0; i < a.data.length; i += 4) count += unlike(a, b, i);
    const share = 100 * count / pixels;
    const percent = count === 0 ? "none" : share < 0.01 ? "less than 0.01%" : `${share.toFixed(2)}%`;
    return `${left.name} and ${right.name} differ in ${count.toLocaleString("en")} of the ${pixels.toLocaleString("en")} pixels shown (${percent}).`;
  };
  const legend = (picture, number) => {
    const { id } = data.subjects[number] || {};
    const facts = data.files[picture.document].content.subjects.find((each) => each.id === id) || {};
    $("#colours").replaceChildren(...(facts.classes || []).map((name, index) => {
      const item = document.createElement("li");
      const square = document.createElement("i");
      square.className = "square";
      square.style.backgroundColor = `rgb(${(facts.colours || [])[index] || [0, 0, 0]})`;
      item.append(square, name);
      return item;
    }));
  };

  const split = $("#split");
  const divide = () => {
    $("#over").style.clipPath = `inset(0 ${100 - split.value}% 0 0)`;
    $("#divide").style.left = `${split.value}%`;
  };
  split.addEventListener("input", divide);
  const drag = (event) => {
    const box = $("#compare").getBoundingClientRect();
    split.value = 100 * (event.clientX - box.left) / box.width;
    divide();
  };
  $("#compare").addEventListener("pointerdown", (event) => { event.currentTarget.setPointerCapture(event.pointerId); drag(event); });
  $("#compare").addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  chooser.addEventListener("change", () => { offer(sides[0].value, sides[1].value); draw(); });
  [...sides, ...all("input[name=how]")].forEach((control) => control.addEventListener("change", draw));

  const thumb = async (button) => {
    const picture = pictures[button.dataset.number];
    const { subject } = button.dataset;
    const layers = new Map(layersOf(picture).map((layer) => [layer.key, layer.mask]));
    const pair = [layers.get(referenceFor(picture, subject)), layers.get(subject)];
    let pixels = await rgba(picture.photo, picture);
    if (pair.every((mask) => typeof mask === "number")) {
      pixels = highlight(pixels, ...(await Promise.all(pair.map((mask) => rgba(mask, picture)))));
    }
    put(button.querySelector("canvas"), pixels);
  };
  all(".thumb").forEach((button) => {
    thumb(button);
    button.addEventListener("click", () => {
      chooser.value = button.dataset.number;
      offer(referenceFor(pictures[chooser.value], button.dataset.subject), button.dataset.subject || "");
      draw().then(() => { $("#masks").scrollIntoView(); split.focus({ preventScroll: true }); });
    });
  });
  const first = all(".thumb")[0];
  offer(referenceFor(pictures[0], first.dataset.subject), first.dataset.subject || "");
  divide();
  draw();
})();
