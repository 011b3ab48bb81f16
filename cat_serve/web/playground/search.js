// Find classes by what somebody types: index, beginning, part, or a name that is nearly it.

const MOST = 60;
const FARTHEST = 2;

const plain = (text) => text.toLowerCase().replace(/[\s_-]+/g, " ").trim();

/**
 * Return { found, near } of `classes` ({index, name}): those that match `typed`, best first; if none does, those
 * whose name differs by a letter or two.
 */
export function search(classes, typed) {
  const text = plain(typed);
  if (text === "") return { found: classes.slice(0, MOST), near: [] };
  const found = [];
  for (const each of classes) {
    const rank = rankOf(each, text);
    if (rank !== null) found.push([rank, each]);
  }
  if (found.length) return { found: best(found), near: [] };
  const near = [];
  for (const each of classes) {
    const names = [plain(each.name), ...plain(each.name).split(" ")];
    const far = Math.min(...names.map((name) => distance(text, name)));
    if (far <= Math.min(FARTHEST, text.length - 2)) near.push([far, each]);
  }
  return { found: [], near: best(near) };
}

function best(ranked) {
  return ranked.sort(([a, one], [b, other]) => a - b || one.index - other.index).slice(0, MOST)
    .map(([, each]) => each);
}

function rankOf({ index, name }, text) {
  if (/^\d+$/.test(text) && String(index).startsWith(text)) return String(index) === text ? 0 : 3;
  const full = plain(name);
  if (full === text) return 0;
  if (full.startsWith(text)) return 1;
  if (full.includes(` ${text}`)) return 2;
  return full.includes(text) ? 4 : null;
}

/** Return the Damerau-Levenshtein distance: letters added, lost, changed, or swapped with their neighbour. */
export function distance(a, b) {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      row.push(Math.min(row[j - 1] + 1, rows[i - 1][j] + 1, rows[i - 1][j - 1] + same));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], rows[i - 2][j - 2] + 1);
      }
    }
    rows.push(row);
  }
  return rows[a.length][b.length];
}
