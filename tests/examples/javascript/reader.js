// Keeps what streams say in a journal, exactly once: node reader.js HOST:PORT JOURNAL STREAM...
//
// Each batch is one line, which holds the rows and the position: it is there whole, or not at all. What a
// kill has left of a line is cut off, and comes again.
'use strict';
const fs = require('fs');
const { Reader } = require('./client.js');

const [address, path, ...streams] = process.argv.slice(2);
const journal = fs.openSync(path, 'a+');
const text = fs.readFileSync(path);
const whole = text.lastIndexOf(10) + 1;
fs.ftruncateSync(journal, whole);
const known = new Map();
for (const line of text.toString('utf8', 0, whole).split('\n')) {
  if (line) {
    const entry = JSON.parse(line);
    known.set(`${entry.stream} ${entry.instance}`, entry.places);
  }
}

function note(entry) {
  fs.writeSync(journal, JSON.stringify(entry) + '\n');
}

new Reader(address, streams, {
  name: 'journal',
  since: 'start',
  known,
  onRows(stream, instance, token, rows, places) {
    note({ stream, instance, token, rows: rows.map((row) => JSON.parse(row)), places });
  },
  onReset(stream, instance, before, token) {
    note({ stream, instance, reset: before, token, places: [[token, '']] });
  },
  onPosition(stream, instance, token, places) {
    note({ stream, instance, token, rows: [], places });
  },
});
