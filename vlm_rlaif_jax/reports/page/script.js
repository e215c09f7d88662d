// Filters of the samples; without it, all of them are displayed.
(() => {
  const form = document.getElementById('filters');
  if (!form) return;
  const cards = [...document.querySelectorAll('#cards > article')];
  const menus = [...form.querySelectorAll('select')];
  const output = form.querySelector('output');
  const update = () => {
    let count = 0;
    for (const card of cards) {
      card.hidden = !menus.every(
        (menu) => !menu.value || card.dataset[menu.dataset.filter] === menu.value,
      );
      count += !card.hidden;
    }
    output.textContent = `${count} of ${cards.length} samples`;
  };
  form.hidden = false;
  form.addEventListener('input', update);
  form.addEventListener('submit', (event) => event.preventDefault());
  update();
})();
