// the contents: a column on wide screens, folded above the page on narrow ones
const contents = document.querySelector("nav details");
const narrow = matchMedia("(max-width: 63.99rem)");
const fold = () => { contents.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
contents.addEventListener("click", (event) => { if (event.target.tagName === "A") fold(); });
// one network at a time; links to pages without a network (data-scale is empty) are always there
const group = document.querySelector(".networks");
if (group) {
  const buttons = [...group.querySelectorAll("button")];
  const choose = (scale) => {
    for (const button of buttons) button.ariaPressed = button.dataset.scale === scale;
    for (const one of document.querySelectorAll("section, nav a"))
      one.hidden = Boolean(one.dataset.scale) && one.dataset.scale !== scale;
  };
  const follow = () => {
    const wanted = document.getElementById(location.hash.slice(1));
    choose(wanted?.dataset.scale || buttons.find((one) => one.ariaPressed === "true")?.dataset.scale || buttons[0].dataset.scale);
    sign();
    wanted?.scrollIntoView();
  };
  for (const button of buttons) button.addEventListener("click", () => { choose(button.dataset.scale); sign(); });
  window.addEventListener("hashchange", follow);
  group.hidden = false;
  follow();
}
for (const viewer of document.querySelectorAll(".viewer")) {
  const cells = JSON.parse(viewer.querySelector("script").textContent);
  const image = viewer.querySelector("img");
  const inputs = [...viewer.querySelectorAll("input")];
  const chosen = (input) => JSON.parse(input.dataset.values)[input.valueAsNumber];
  const show = () => {
    const [weight, threshold] = inputs.map(chosen);
    // without ERK-Guid w_con means nothing: that cell stands for all of them
    const fits = (cell) => cell.w_con === null || threshold === undefined || cell.w_con === threshold;
    const index = cells.findIndex((cell) => cell.w_stiff === weight && fits(cell));
    for (const input of inputs) input.nextElementSibling.value = chosen(input);
    for (const group of viewer.querySelectorAll(".trace")) group.classList.toggle("on", +group.dataset.row === index);
    const wanted = inputs.map((input) => input.ariaLabel + " " + chosen(input)).join(", ");
    const { image: source, caption } = cells[index] ?? { caption: wanted + ": not computed" };
    image.hidden = index < 0;
    if (source !== undefined) image.src = source;
    image.alt = caption;
    viewer.querySelector("figcaption").textContent = caption;
  };
  for (const input of inputs) input.addEventListener("input", show);
  show();
}
