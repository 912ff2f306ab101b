// A client for tcprepl's line protocol (protocol.md), in the native dialect, with node alone.
'use strict';
const net = require('net');

const PING_INTERVAL_MS = 10000;
const PING_TIMEOUT_MS = 25000;
const HANDSHAKE_TIMEOUT_MS = 15000;
const RECONNECT_MIN_MS = 100;
const RECONNECT_MAX_MS = 5000;
const MAX_LINE_BYTES = 1048576;

// A connection that is made again whenever it is lost: splits lines, keeps alive, notices silence.
class Connection {
  constructor(address, name) {
    const colon = address.lastIndexOf(':');
    this.host = address.slice(0, colon);
    this.port = Number(address.slice(colon + 1));
    this.name = name;
    this.delayMs = RECONNECT_MIN_MS;
    this.stopped = false;
    this.connect();
  }

  connect() {
    this.rest = Buffer.alloc(0);
    this.armed = false;
    this.greeted = false;
    const socket = this.socket = net.connect(this.port, this.host);
    socket.setNoDelay(true);
    socket.on('connect', () => { this.say(`NAME ${this.name}`); this.ping(); });
    socket.on('data', (data) => this.received(data));
    socket.on('error', () => {});  // 'close' follows
    socket.on('close', () => this.lost());
    this.heardAt = Date.now();
    this.timer = setInterval(() => this.tick(), 250);
  }

  say(line) {
    this.saidAt = Date.now();
    this.socket.write(line + '\n');
  }

  ping() { this.say(`PING ${Date.now()}`); }

  fail(why) {
    this.say(`ERROR ${why}`);
    this.socket.end();
  }

  tick() {
    const now = Date.now();
    if (this.socket.connecting || this.socket.writableEnded) return;
    if (this.armed && now - this.heardAt >= PING_TIMEOUT_MS) {
      this.fail('ping timeout: nothing came for 25 seconds');
    } else if (!this.greeted && now - this.heardAt >= HANDSHAKE_TIMEOUT_MS) {
      this.fail('handshake timeout');
    } else if (now - this.saidAt >= PING_INTERVAL_MS) {
      this.ping();
    }
  }

  received(data) {
    let rest = this.rest.length ? Buffer.concat([this.rest, data]) : data;
    for (let end; (end = rest.indexOf(10)) >= 0; rest = rest.subarray(end + 1)) {
      if (this.socket.writableEnded) return;
      const line = rest.toString('utf8', 0, end).replace(/\r$/, '');
      if (line.trim()) this.line(line);
    }
    this.rest = rest;
    if (rest.length > MAX_LINE_BYTES) this.fail('a line is longer than 1048576 bytes');
  }

  line(line) {
    this.heardAt = Date.now();
    const [, word, text] = /^(\S*) ?(.*)$/s.exec(line);
    if (word === 'SERVER') {
      if (this.serverName && text !== this.serverName) this.fail('Wrong remote');
    } else if (word === 'PING') {
      const first = !this.armed;
      this.armed = true;
      if (first) {
        const [, tag, incarnation] = text.split(' ');
        if (tag !== 'tcprepl/1') return this.fail('this is no tcprepl server');
        this.greeted = true;
        this.delayMs = RECONNECT_MIN_MS;
        this.ready(incarnation || '');
      }
    } else if (word === 'ERROR') {
      console.error(`the server says: ${text}`);
    } else if (word === 'RDATA') {
      const [, stream, instance, token, row] = /^(\S+) (\S+) (\S+) (.*)$/s.exec(text);
      this.row(stream, instance, token, row);
    } else if (word === 'POSITION') {
      const [stream, instance, prev, token] = text.split(' ');
      this.position(stream, instance, Number(prev), Number(token));
    } else {
      this.other(word, text.split(' '));
    }
  }

  ready() {}
  row() {}
  position() {}
  other() {}

  lost() {
    clearInterval(this.timer);
    if (this.stopped) return;
    setTimeout(() => this.connect(), this.delayMs * (0.5 + Math.random() / 2));
    this.delayMs = Math.min(this.delayMs * 2, RECONNECT_MAX_MS);
  }

  stop() {
    this.stopped = true;
    this.socket.end();
  }
}

// Follows streams (protocol.md 7.2, 7.3, 17.1). The callbacks are synchronous: a position moves when
// `onRows` has returned.
//   known: Map of "stream instance" -> [[token, incarnation], ...], the newest first
//   onRows(stream, instance, token, rows, places): a whole batch, rows as JSON texts
//   onReset(stream, instance, before, token): rows above `token` are void or gone
//   onPosition(stream, instance, token, places): it moved without rows
class Reader extends Connection {
  constructor(address, streams, options) {
    super(address, options.name || 'reader.js');
    this.streams = streams;
    this.options = options;
    this.serverName = options.serverName;
    this.known = options.known || new Map();
  }

  ready(incarnation) {
    this.incarnation = incarnation;
    this.batches = new Map();
    this.announced = new Map();  // the pairs of this connection, and the last incarnation of each
    const all = this.options.since === 'start' ? '0' : 'NOW';
    for (const [pair, places] of this.known) {
      const said = incarnation && places[0][1]
        ? places.slice(0, 8).map((place) => place.join(' ')).join(' ') : places[0][0];
      this.say(`REPLICATE ${pair} ${said}`);
    }
    for (const stream of this.streams) this.say(`REPLICATE ${stream} * ${all}`);
  }

  // K is reached in this incarnation; where the ones before ended for us is kept with it.
  moved(pair, token) {
    const before = (this.known.get(pair) || []).filter(
      ([at, incarnation]) => incarnation !== this.incarnation && at <= token);
    const places = [[token, this.incarnation], ...before].slice(0, 8);
    this.known.set(pair, places);
    return places;
  }

  position(stream, instance, prev, token) {
    if (!this.streams.includes(stream)) return;
    const pair = `${stream} ${instance}`;
    const begins = !this.announced.has(pair);
    this.announced.set(pair, true);
    this.batches.delete(pair);
    const places = this.known.get(pair);
    const at = places ? places[0][0] : undefined;
    const resumed = places && prev <= at && at <= token;
    if (at !== undefined && (begins ? prev !== at && !resumed : !resumed)) {
      this.options.onReset(stream, instance, at, begins ? prev : token);
    }
    const told = this.moved(pair, token);
    if (this.options.onPosition && at !== token) this.options.onPosition(stream, instance, token, told);
  }

  row(stream, instance, token, row) {
    const pair = `${stream} ${instance}`;
    if (!this.announced.has(pair)) return;  // the POSITION to come covers it
    const rows = this.batches.get(pair) || [];
    rows.push(row);
    if (token === 'batch') {
      this.batches.set(pair, rows);
      return;
    }
    this.batches.delete(pair);
    const reached = Number(token);
    const places = this.known.get(pair);
    if (places && reached <= places[0][0]) return;  // known already
    this.options.onRows(stream, instance, reached, rows, this.moved(pair, reached));
  }
}

// Publishes each row once, whatever is cut or restarted (protocol.md 6.17, 6.18, 7.12, 17.2).
class Writer extends Connection {
  constructor(address, producer) {
    super(address, producer);
    this.producer = producer;
    this.epoch = '';
    this.sequence = 0;   // the number that was given last
    this.held = [];      // what has no answer: {number, line, resolve, reject}
    this.claimed = new Promise((resolve) => { this.claim = resolve; });
  }

  ready() {
    this.say(`PRODUCER ${this.producer}${this.epoch && ' ' + this.epoch}`);
  }

  // Returns a promise of the row's token.
  publish(stream, row) {
    this.sequence += 1;
    const number = this.sequence;
    return new Promise((resolve, reject) => {
      const append = { number, line: `PUBLISH ${stream} #${number} ${row}`, resolve, reject };
      this.held.push(append);
      if (this.open) this.say(append.line);
    });
  }

  other(word, words) {
    if (word === 'PRODUCER') {
      const [, epoch, taken] = words;
      if (!this.epoch) this.sequence = Number(taken);
      this.epoch = epoch;
      this.open = true;
      this.claim(Number(taken));
      for (const append of this.held) this.say(append.line);
    } else if (word === 'PUBLISHED') {
      this.held.shift().resolve(Number(words[3]));
    } else if (word === 'REFUSED' && words.indexOf('unavailable') in { 1: true, 2: true }) {
      this.open = false;
      setTimeout(() => this.socket.end(), 1000);  // says all of it again on a new connection
    } else if (word === 'REFUSED') {
      const why = new Error(words.slice(1).join(' '));
      if (!this.open) throw why;
      for (const append of this.held.splice(0)) append.reject(why);
      this.stop();
    }
  }

  lost() {
    this.open = false;
    super.lost();
  }
}

module.exports = { Reader, Writer };
