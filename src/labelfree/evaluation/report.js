// The map answers to pointing: what a point is, and which points are of one class.
const map = document.querySelector(".map");
if (map) {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const tip = document.getElementById("tip");
  const box = tip.parentElement;
  const points = [...map.querySelectorAll("circle")];
  map.addEventListener("pointerover", (event) => {
    const i = event.target.dataset.i;
    if (i === undefined) return;
    const name = document.createElement("small");
    name.textContent = data.names[i];
    const label = document.createElement("b");
    label.textContent = data.classes[data.y[i]];
    const shown = document.createElement("div");
    shown.className = "shown";
    shown.innerHTML = data.html[i];
    tip.replaceChildren(shown, label, name);
    tip.style.display = "block";
    const area = box.getBoundingClientRect();
    const x = event.clientX - area.left;
    const y = event.clientY - area.top;
    tip.style.left = `${Math.max(0, Math.min(x + 14, area.width - tip.offsetWidth))}px`;
    tip.style.top = `${y + tip.offsetHeight + 24 > area.height ? y - tip.offsetHeight - 10 : y + 14}px`;
  });
  map.addEventListener("pointerout", () => { tip.style.display = "none"; });
  let chosen = null;
  document.querySelectorAll("button[data-class]").forEach((button) =>
    button.addEventListener("click", () => {
      chosen = chosen === button.dataset.class ? null : button.dataset.class;
      map.classList.toggle("one", chosen !== null);
      points.forEach((point, i) => point.classList.toggle("kept", String(data.y[i]) === chosen));
    }));
}
