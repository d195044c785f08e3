/* Filters the ledger of claims. Without this script every claim is listed and the form stays hidden. */
(() => {
  "use strict";

  for (const ledger of document.querySelectorAll(".opd-ledger")) {
    const form = ledger.querySelector(".opd-filter");
    const rows = [...ledger.querySelectorAll(".opd-claim")];
    const apply = () => {
      const wanted = [...new FormData(form)].filter(([, value]) => value !== "");
      for (const row of rows) row.hidden = !wanted.every(([name, value]) => row.dataset[name] === value);
      form.querySelector("output").value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
    };
    form.addEventListener("change", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply();
  }
})();
