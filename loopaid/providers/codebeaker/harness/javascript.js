// What a CodeBeaker server runs for a window of items in JavaScript: the same as python.py beside it, which says what
// that is and what it prints, with what Node.js 18 has. The harness of local sessions wants pipes that it can open
// anew, which those of child_process are not: hence named ones, in a directory of their own that is gone at once.

'use strict';

const fs = require('fs');
const { execFileSync, spawn } = require('child_process');
const { join } = require('path');
const { Socket } = require('net');
const { inflateSync } = require('zlib');

const FRAME_HEAD = 5, ROW_HEAD = 6;
const READY = 1, LOADED = 2, LOAD_FAILED = 3, END = 4;
const STOP = Buffer.from([3, 0, 0, 0, 0]);
const MIB = 1 << 20;
const CODE_RANGE_BYTES = 512 * MIB;  // which newer ones reserve and hardly use, and the kernel counts as data
const BOUNDED = 'ulimit -d "$1"; ulimit -f "$2"; ulimit -c 0; shift 2; exec "$@"';

class Supervisor {
  constructor(order) {
    this.order = order;
    this.directory = fs.mkdtempSync(join(require('os').tmpdir(), 'loopaid-'));
    this.up = this.rows = Buffer.alloc(0);
    this.done = 0;
    this.ended = this.loaded = null;
    this.stopped = false;
    this.kills = this.killsForMemory();
    this.version = process.versions.node;
    this.limit = order.load_s;
  }

  say(kind, payload) {
    let line = Buffer.from(`${this.order.tag} ${kind} ${payload.toString('base64')}\n`);
    while (line.length > 0) {
      try {
        line = line.subarray(fs.writeSync(1, line));
      } catch (error) {
        if (error.code !== 'EAGAIN') throw error;
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
      }
    }
  }

  run() {
    const { O_RDWR, O_NONBLOCK, O_CREAT, O_APPEND } = fs.constants;
    const named = ['down', 'up', 'rows'].map((name) => join(this.directory, name));
    execFileSync('mkfifo', named);
    const ours = named.map((path) => fs.openSync(path, O_RDWR | O_NONBLOCK));
    const theirs = named.map((path) => fs.openSync(path, O_RDWR));
    this.captures = ['out', 'err'].map((name) => fs.openSync(join(this.directory, name), O_RDWR | O_CREAT | O_APPEND));
    this.drains = { up: fs.openSync(named[1], O_RDWR | O_NONBLOCK), rows: fs.openSync(named[2], O_RDWR | O_NONBLOCK) };
    this.began = performance.now();
    this.child = this.spawned(theirs);
    theirs.forEach((fd) => fs.closeSync(fd));
    const [down, up, rows] = ours.map((fd, each) => new Socket({ fd, readable: each > 0, writable: each === 0 }));
    this.down = down;
    up.on('data', (data) => this.heard('up', data));
    rows.on('data', (data) => this.heard('rows', data));
    for (const socket of [down, up, rows]) socket.on('error', () => {});
    this.child.on('exit', (code, signal) => this.exited(code, signal));
    this.child.on('error', (error) => this.exited(`it could not be started: ${error.message}`, null));
    this.arm();
  }

  spawned(fds) {
    const settings = { ...this.order.settings, fds: [3, 4, 5], sweep: false, environment: '' };
    const memory = settings.limits.DATA;
    const heap = Math.floor(Math.max(memory / 2, memory - 160 * MIB) / MIB);
    const data = memory + (Number(this.version.split('.')[0]) >= 21 ? CODE_RANGE_BYTES : 0);
    const harness = join(this.directory, 'harness.cjs');
    fs.writeFileSync(harness, this.order.harness);
    const node = [process.execPath, `--max-old-space-size=${heap}`, '--v8-pool-size=1', harness];
    const bounds = [data / 1024, settings.limits.FSIZE / 512].map((bound) => String(Math.ceil(bound)));
    return spawn('sh', ['-c', BOUNDED, 'sh', ...bounds, ...node], {
      detached: true,
      env: { ...process.env, LOOPAID_HARNESS: JSON.stringify(settings) },
      stdio: ['ignore', ...this.captures, ...fds],
    });
  }

  heard(pipe, data) {
    if (this.ended !== null) return;
    const before = this.done, wasLoaded = this.loaded;
    this[pipe] = Buffer.concat([this[pipe], data]);
    if (pipe === 'rows') this.tellRows();
    else this.takeFrames();
    if (this.ended !== null) {
      this.finish();
      return;
    }
    if (this.done > before || this.loaded !== wasLoaded) {
      this.began = performance.now();
      this.limit = this.order.item_s;
    }
    this.arm();
  }

  tellRows() {
    while (this.rows.length >= ROW_HEAD) {
      const size = this.rows.readUInt32BE(2);
      if (size < ROW_HEAD || size > this.order.row_bytes_max || this.done === this.order.count) {
        this.ended = { how: 'violation', why: 'rows that the harness does not write' };
        return;
      }
      if (this.rows.length < size) return;
      this.say('row', this.rows.subarray(0, size));
      this.rows = this.rows.subarray(size);
      this.done += 1;
    }
  }

  takeFrames() {
    while (this.ended === null && this.up.length >= FRAME_HEAD) {
      const end = FRAME_HEAD + this.up.readUInt32BE(1);
      if (this.up.length < end) return;
      const kind = this.up[0], payload = this.up.toString('utf8', FRAME_HEAD, end);
      this.up = this.up.subarray(end);
      if (kind === READY) this.begin();
      if (kind === LOADED) this.loaded = performance.now();
      if (kind !== END && kind !== LOAD_FAILED) continue;
      this.drain('rows');  // what it wrote before it said so
      this.tellRows();
      this.ended ??= { how: kind === END ? 'end' : 'load_failed', said: payload };
    }
  }

  begin() {
    this.removeDirectory();  // all in it is open, and nobody may come to remove it later
    this.down.write(Buffer.from(this.order.frames, 'latin1'));
    this.order.frames = '';  // whoever says that it is ready once more is not the harness
  }

  removeDirectory() {
    fs.rmSync(this.directory, { recursive: true, force: true });
  }

  drain(pipe) {
    const part = Buffer.alloc(1 << 16);
    for (;;) {
      try {
        const count = fs.readSync(this.drains[pipe], part, 0, part.length, null);
        this[pipe] = Buffer.concat([this[pipe], part.subarray(0, count)]);
      } catch (error) {
        if (error.code === 'EAGAIN') return;
        throw error;
      }
    }
  }

  arm() {
    clearTimeout(this.timer);
    let due = this.began + this.limit * 1000;
    if (this.loaded !== null && !this.stopped) due = Math.min(due, this.loaded + this.order.budget_s * 1000);
    this.timer = setTimeout(() => this.due(), Math.min(Math.max(0, due - performance.now()), 0x7fffffff));
  }

  due() {
    const now = performance.now();
    if (now >= this.began + this.limit * 1000) {
      this.drain('rows');
      const before = this.done;
      this.tellRows();
      if (this.ended === null && this.done === before) {
        const how = this.loaded === null ? 'load_timeout' : 'timeout';
        this.ended = { how, ran_us: Math.floor((now - this.began) * 1000) };
      }
      if (this.ended !== null) {
        this.finish();
        return;
      }
      this.began = now;
    } else if (this.loaded !== null && !this.stopped && now >= this.loaded + this.order.budget_s * 1000) {
      this.stopped = true;
      this.down.write(STOP);
    }
    this.arm();
  }

  exited(code, signal) {
    this.child = null;
    if (this.ended === null) {
      this.drain('rows');
      this.drain('up');
      this.tellRows();
      this.takeFrames();
      let how = signal === 'SIGKILL' ? 'killed' : 'crashed';
      let why = signal ? `killed by ${signal}` : typeof code === 'number' ? `exit code ${code}` : code;
      if (this.killsForMemory() > this.kills) {
        how = 'out_of_memory';
        why = 'killed by the kernel: the container has no memory left';
      }
      this.ended ??= { how, why };
    }
    this.finish();
  }

  /** How often the kernel has ended a process of this container, 0 if there is none. */
  killsForMemory() {
    for (const name of ['memory.events', 'memory/memory.oom_control']) {
      try {
        const [, count] = /^oom_kill (\d+)$/m.exec(fs.readFileSync(join(this.order.cgroup, name), 'latin1'));
        return Number(count);
      } catch {
        // it has another version, or there is none
      }
    }
    return 0;
  }

  finish() {
    clearTimeout(this.timer);
    if (this.child !== null) {  // and comes back when it is gone
      for (const pid of [-this.child.pid, this.child.pid]) {
        try {
          process.kill(pid, 'SIGKILL');
        } catch {
          // it is gone already
        }
      }
      return;
    }
    ['stdout', 'stderr'].forEach((name, each) => {
      const limit = this.order.settings[`${name}_bytes_max`], { size } = fs.fstatSync(this.captures[each]);
      const text = Buffer.alloc(Math.min(size, limit));
      fs.readSync(this.captures[each], text, 0, text.length, 0);
      this.ended[name] = text.toString('utf8');
      this.ended[`${name}_truncated`] = size > limit;
    });
    this.removeDirectory();
    this.say('end', Buffer.from(JSON.stringify({ ...this.ended, done: this.done, version: this.version })));
    process.reallyExit(0);
  }
}

function main(payload) {
  const parts = payload.split('.').map((part) => JSON.parse(inflateSync(Buffer.from(part, 'base64')).toString()));
  new Supervisor(Object.assign({}, ...parts)).run();
}
