// Publishes the lines of a file, exactly once: node writer.js HOST:PORT STREAM PRODUCER FILE
'use strict';
const fs = require('fs');
const { Writer } = require('./client.js');

const [address, stream, producer, path] = process.argv.slice(2);

async function main() {
  const rows = fs.readFileSync(path, 'utf8').split('\n').filter((line) => line);
  const writer = new Writer(address, producer);
  const taken = await writer.claimed;
  let token = null;
  for (let start = taken; start < rows.length; start += 1000) {
    const sent = rows.slice(start, start + 1000).map((row) => writer.publish(stream, row));
    token = (await Promise.all(sent)).pop();
  }
  if (token !== null) console.log(`${stream} is at ${token}`);
  console.log(`${rows.length} rows, ${taken} of them taken before`);
  writer.stop();
}

main().catch((error) => {
  console.error(`REFUSED ${error.message}`);
  process.exit(1);
});
