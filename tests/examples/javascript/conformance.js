// The reader as `tcprepl conformance --listen ADDR -- node conformance.js` starts it.
'use strict';
const { Reader } = require('./client.js');

const told = process.env;
const known = new Map();
for (const word of told.TCPREPL_KNOWN.split(' ').filter(Boolean)) {
  const [stream, token] = word.split('=');
  known.set(`${stream} master`, [[Number(token), '']]);
}

new Reader(told.TCPREPL_ADDR, told.TCPREPL_FOLLOW.split(' '), {
  name: told.TCPREPL_NAME,
  serverName: told.TCPREPL_SERVER,
  since: told.TCPREPL_SINCE,
  known,
  onRows(stream, instance, token, rows) {
    console.log(`gets ${stream} ${token} ${rows.join(' ')}`);
  },
  onReset(stream, instance, before, token) {
    console.log(`resets ${stream} from ${before} to ${token}`);
  },
});
