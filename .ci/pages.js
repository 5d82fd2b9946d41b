// Search in titles and headings: every word must occur; pages whose title has them come first.
const box = document.getElementById('search'), list = document.getElementById('found'), up = document.body.dataset.up;
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean), hits = [];
  const has = text => words.every(w => text.toLowerCase().includes(w));
  if (words.length) for (const [url, title, heads] of PAGES) {
    if (has(title)) hits.unshift([url, title]);
    else for (const [id, head] of heads) if (has(`${title} ${head}`)) hits.push([`${url}#${id}`, `${title}: ${head}`]);
  }
  list.replaceChildren(...hits.slice(0, 20).map(([url, text]) => {
    const li = document.createElement('li'), a = document.createElement('a');
    a.href = up + url; a.textContent = text; li.append(a); return li;
  }));
});
