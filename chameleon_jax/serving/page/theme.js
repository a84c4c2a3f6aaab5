// Light, dark, or as the system says. Runs before the first paint, so that nothing flashes.

const KEY = "chameleon.theme";
const CHOICES = { auto: "Colours: as the system", light: "Colours: light", dark: "Colours: dark" };

let choice = Object.hasOwn(CHOICES, localStorage.getItem(KEY) ?? "") ? localStorage.getItem(KEY) : "auto";
document.documentElement.dataset.theme = choice;

function show(button) {
  document.documentElement.dataset.theme = choice;
  button.ariaLabel = button.title = CHOICES[choice];
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
