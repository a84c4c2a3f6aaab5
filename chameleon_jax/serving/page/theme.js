// Light, dark, or as the system says. Runs before the first paint, so that nothing flashes.

const KEY = "chameleon.theme";
const CHOICES = {
  auto: ["Auto", "Colours: as the system"],
  light: ["Light", "Colours: light"],
  dark: ["Dark", "Colours: dark"],
};

let choice = Object.hasOwn(CHOICES, localStorage.getItem(KEY) ?? "") ? localStorage.getItem(KEY) : "auto";
document.documentElement.dataset.theme = choice;

function show(button) {
  document.documentElement.dataset.theme = choice;
  button.textContent = CHOICES[choice][0];
  button.ariaLabel = CHOICES[choice][1];
}

export function connectTheme(button) {
  show(button);
  button.onclick = () => {
    const names = Object.keys(CHOICES);
    choice = names[(names.indexOf(choice) + 1) % names.length];
    localStorage.setItem(KEY, choice);
    show(button);
  };
}
