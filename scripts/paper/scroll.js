// a visible sign where a box scrolls sideways, and the keyboard can scroll it
const sign = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("wide", wide);
    if (wide) box.tabIndex = 0; else box.removeAttribute("tabindex");
  }
};
window.addEventListener("resize", sign);
document.addEventListener("toggle", sign, true);
document.addEventListener("load", sign, true);  // an image has its width only then
sign();
