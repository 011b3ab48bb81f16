// Read the files of a zip (APPNOTE 6.3, without Zip64): stored or deflated.

const END_SIGNATURE = 0x06054b50;
const ENTRY_SIGNATURE = 0x02014b50;
const END_BYTES = 22;
const ENTRY_BYTES = 46;
const LOCAL_BYTES = 30;
const STORED = 0;
const DEFLATED = 8;

/** Return [{ name, blob }] in the order of the directory. */
export async function unzip(archive) {
  const view = new DataView(await archive.arrayBuffer());
  const end = findEnd(view);
  const files = [];
  let at = view.getUint32(end + 16, true);
  for (let i = 0; i < view.getUint16(end + 10, true); i += 1) {
    if (view.getUint32(at, true) !== ENTRY_SIGNATURE) throw new Error("The zip's directory is damaged.");
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    files.push({
      name: new TextDecoder().decode(new Uint8Array(view.buffer, at + ENTRY_BYTES, name)),
      blob: await content(view, at),
    });
    at += ENTRY_BYTES + name + extra + comment;
  }
  return files;
}

function findEnd(view) {
  for (let at = view.byteLength - END_BYTES; at >= 0; at -= 1) {
    if (view.getUint32(at, true) === END_SIGNATURE) return at;
  }
  throw new Error("This is not a zip.");
}

async function content(view, entry) {
  const method = view.getUint16(entry + 10, true);
  const size = view.getUint32(entry + 20, true);
  const local = view.getUint32(entry + 42, true);
  const start = local + LOCAL_BYTES + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  const packed = new Blob([new Uint8Array(view.buffer, start, size)]);
  if (method === STORED) return packed;
  if (method !== DEFLATED) throw new Error(`The zip uses method ${method}.`);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("deflate-raw"))).blob();
}
