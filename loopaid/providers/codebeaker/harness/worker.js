// What a CodeBeaker server runs for a window of items in JavaScript on Deno or Bun: the same as javascript.js beside it,
// for where no child can be started. The harness of local sessions runs in a worker of this process, on modules `fs` and
// `process` that are made up: its pipes are messages, and so is what is printed.
//
// No limit can be set on memory there, so it is looked at while a program runs. A promise that nothing is left to settle
// is not told from one that takes its time.

import { Buffer } from 'node:buffer';
import { writeSync } from 'node:fs';
import process from 'node:process';
import { inflateSync } from 'node:zlib';

const FRAME_HEAD = 5, ROW_HEAD = 6;
const LOADED = 2, LOAD_FAILED = 3, END = 4;
const LATE_MS = 20;  // what was told before its time was over may still be on its way
const LOOK_MS = 50;

class Supervisor {
  constructor(order) {
    this.order = order;
    this.up = this.rows = Buffer.alloc(0);
    this.done = 0;
    this.isLoaded = false;
    this.limit = order.load_s;
    this.version = process.versions.deno || process.versions.bun || process.versions.node;
    this.forgetPrinted();
  }

  say(kind, payload) {
    let line = Buffer.from(`\n${this.order.tag} ${kind} ${payload.toString('base64')}\n`);
    while (line.length > 0) {
      try {
        line = line.subarray(writeSync(1, line));
      } catch (error) {
        if (error.code !== 'EAGAIN') throw error;
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
      }
    }
  }

  run() {
    const { frames, harness, settings, budget_s: budgetS } = this.order;
    const worker = new Worker(`data:text/javascript,(${encodeURIComponent(work.toString())})()`, { type: 'module' });
    worker.onmessage = ({ data }) => this.heard(data);
    worker.onerror = (event) => {
      event.preventDefault();
      this.finish({ how: 'crashed', why: event.message });
    };
    worker.postMessage({ frames, harness, settings, budgetMs: budgetS * 1000 });
    setInterval(() => this.lookAtMemory(settings.limits.DATA), LOOK_MS);
    this.progressed();
  }

  heard({ pipe, bytes, exited }) {
    if (exited !== undefined) {
      this.finish({ how: 'crashed', why: `exit code ${exited}` });
    } else if (pipe === 'rows') {
      this.rows = Buffer.concat([this.rows, bytes]);
      this.tellRows();
    } else if (pipe === 'up') {
      this.up = Buffer.concat([this.up, bytes]);
      this.takeFrames();
    } else {
      this.printed[pipe].push(bytes);
    }
  }

  tellRows() {
    while (this.rows.length >= ROW_HEAD) {
      const size = this.rows.readUInt32BE(2);
      if (size < ROW_HEAD || size > this.order.row_bytes_max || this.done === this.order.count) {
        this.finish({ how: 'violation', why: 'rows that the harness does not write' });
      }
      if (this.rows.length < size) return;
      this.say('row', this.rows.subarray(0, size));
      this.rows = this.rows.subarray(size);
      this.done += 1;
      this.progressed();
    }
  }

  takeFrames() {
    while (this.up.length >= FRAME_HEAD) {
      const end = FRAME_HEAD + this.up.readUInt32BE(1);
      if (this.up.length < end) return;
      const kind = this.up[0], said = this.up.toString('utf8', FRAME_HEAD, end);
      this.up = this.up.subarray(end);
      if (kind === LOADED) {
        this.isLoaded = true;
        this.limit = this.order.item_s;
        this.progressed();
      } else if (kind === END || kind === LOAD_FAILED) {
        this.finish({ how: kind === END ? 'end' : 'load_failed', said });
      }
    }
  }

  /** A row came, or the program was loaded: time and what is printed are the next item's. */
  progressed() {
    this.began = performance.now();
    this.forgetPrinted();
    this.arm();
  }

  arm() {
    const due = this.began + this.limit * 1000 + LATE_MS;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.due(), Math.min(due - performance.now(), 0x7fffffff));
  }

  due() {
    const ran = performance.now() - this.began;
    if (ran < this.limit * 1000) {
      this.arm();
    } else {
      this.finish({ how: this.isLoaded ? 'timeout' : 'load_timeout', ran_us: Math.floor(ran * 1000) });
    }
  }

  lookAtMemory(most) {
    const { rss } = process.memoryUsage();
    if (rss > most) this.finish({ how: 'out_of_memory', why: `${rss} bytes, more than ${most}` });
  }

  forgetPrinted() {
    this.printed = { stdout: [], stderr: [] };
  }

  finish(ended) {
    for (const name of ['stdout', 'stderr']) {
      const bytes = Buffer.concat(this.printed[name]), limit = this.order.settings[`${name}_bytes_max`];
      ended[name] = bytes.toString('utf8', 0, limit);
      ended[`${name}_truncated`] = bytes.length > limit;
    }
    this.say('end', Buffer.from(JSON.stringify({ ...ended, done: this.done, version: this.version })));
    process.exit(0);
  }
}

/** The worker: all of it, as it begins with nothing of what stands around it here. */
async function work() {
  const realProcess = (await import('node:process')).default;
  const { createRequire } = await import('node:module');
  const { Buffer } = await import('node:buffer');
  const { Console } = await import('node:console');
  const realRequire = createRequire('/tmp/harness.cjs');
  const post = self.postMessage.bind(self);
  const waitFor = Atomics.wait, forever = new Int32Array(new SharedArrayBuffer(4));
  const now = performance.now.bind(performance);
  const down = 3, up = 4, rows = 5;
  const STOP = [3, 0, 0, 0, 0], LOADED = 2;

  function host({ frames, settings, budgetMs }) {
    let ahead = Buffer.from(frames, 'latin1'), stopAt = Infinity;
    const captures = { 1: capture('stdout'), 2: capture('stderr') };

    function capture(pipe) {
      return { pipe, limit: settings[`${pipe}_bytes_max`] + 1, bytes: Buffer.alloc(0), size: 0 };
    }

    /** Keep what is printed for the row of its item, and tell of it should there be none. */
    function print(fd, text) {
      const to = captures[fd];
      const bytes = typeof text === 'string' ? Buffer.from(text) : Buffer.from(text.buffer, text.byteOffset, text.byteLength);
      const kept = Buffer.from(bytes.subarray(0, Math.max(0, to.limit - to.bytes.length)));
      to.size += bytes.length;
      if (kept.length === 0) return;
      to.bytes = Buffer.concat([to.bytes, kept]);
      post({ pipe: to.pipe, bytes: kept });
    }

    function exit(code) {
      post({ exited: code });
      waitFor(forever, 0, 0);
    }

    const fs = {
      constants: { O_RDONLY: 0, O_WRONLY: 1, O_RDWR: 2, O_NONBLOCK: 2048 },
      closeSync() {},
      openSync: (path, flags) => Number(path.slice(path.lastIndexOf('/') + 1)) + (flags & 2048),
      fstatSync: (fd) => ({ size: captures[fd].size }),
      ftruncateSync(fd) {
        captures[fd] = capture(captures[fd].pipe);
      },
      readSync(fd, into, offset, length) {
        if (fd !== down && fd !== down + 2048) return captures[fd].bytes.copy(into, offset, 0, length);
        if (ahead.length === 0 && now() >= stopAt) {
          ahead = Buffer.from(STOP);
          stopAt = Infinity;
        }
        if (ahead.length === 0 && fd !== down) throw Object.assign(new Error('nothing there'), { code: 'EAGAIN' });
        if (ahead.length === 0) waitFor(forever, 0, 0);  // all is said, and this process about to end
        const count = ahead.copy(into, offset, 0, length);
        ahead = ahead.subarray(count);
        return count;
      },
      writeSync(fd, bytes, offset, length) {
        if (fd === up && bytes[offset] === LOADED) stopAt = now() + budgetMs;
        post({ pipe: fd === rows ? 'rows' : 'up', bytes: Buffer.from(bytes.subarray(offset, offset + length)) });
        return length;
      },
      readFileSync() {
        throw new Error('there is none');
      },
    };
    const process = Object.assign(Object.create(realProcess), {
      env: { LOOPAID_HARNESS: JSON.stringify({ ...settings, fds: [down, up, rows], sweep: false, environment: '' }) },
      reallyExit: exit,
      _kill: () => -1,
      getActiveResourcesInfo: () => [],
      resourceUsage: () => ({ maxRSS: Math.floor(realProcess.memoryUsage().rss / 1024) }),
      on: () => {},
      setUncaughtExceptionCaptureCallback(fail) {
        const tell = (event, error) => {
          event.preventDefault();
          fail(error);
        };
        self.addEventListener('error', (event) => tell(event, event.error));
        self.addEventListener('unhandledrejection', (event) => tell(event, event.reason));
        realProcess.on('uncaughtException', fail);
        realProcess.on('unhandledRejection', fail);
      },
    });
    return { fs, process, print };
  }

  /** It leaves types out in a way of its own; its compileFunction neither counts lines as others do nor throws their
   * errors, and contexts that are no objects of ours have a console of their own. */
  function ofBun() {
    const vm = realRequire('node:vm'), transpiler = new Bun.Transpiler({ loader: 'ts', deadCodeElimination: false });
    const compileFunction = (source, names, options) => {
      return new vm.Script(`(function (${names}) {${source}\n})`, options).runInThisContext();
    };
    const stripTypeScriptTypes = (source) => transpiler.transformSync(source);
    const constants = { ...vm.constants, DONT_CONTEXTIFY: undefined };
    return { vm: { ...vm, compileFunction, constants }, module: { createRequire, stripTypeScriptTypes } };
  }

  function capturePrints(print) {
    const printer = (fd) => {
      return (chunk, ...more) => {
        print(fd, chunk);
        const told = more.find((each) => typeof each === 'function');
        if (told) queueMicrotask(told);
        return true;
      };
    };
    realProcess.stdout.write = printer(1);
    realProcess.stderr.write = printer(2);
    globalThis.console = new Console({ stdout: realProcess.stdout, stderr: realProcess.stderr });
    if (typeof Deno !== 'undefined') {
      for (const [fd, stream] of [[1, Deno.stdout], [2, Deno.stderr]]) {
        stream.writeSync = (bytes) => (print(fd, bytes), bytes.length);
        stream.write = async (bytes) => stream.writeSync(bytes);
      }
    }
  }

  self.onmessage = ({ data }) => {
    self.onmessage = null;
    setInterval(() => {}, 0x7fffffff);  // or it ends when nothing is left to do, without a word of what went wrong
    const { fs, process, print } = host(data);
    capturePrints(print);
    for (const name of ['postMessage', 'onmessage', 'close']) delete globalThis[name];
    const modules = typeof Bun === 'undefined' ? { fs } : { fs, ...ofBun() };
    const require = (name) => modules[name] || realRequire(`node:${name}`);
    const named = '/harness.cjs', source = `${data.harness}\n//# sourceURL=${named}`;
    new Function('require', 'process', 'Deno', '__filename', source)(require, process, undefined, named);
    realProcess.exit = process.exit;
    if (typeof Deno !== 'undefined') Deno.exit = process.exit;
  };
}

function main(payload) {
  const parts = payload.split('.').map((part) => JSON.parse(inflateSync(Buffer.from(part, 'base64')).toString()));
  new Supervisor(Object.assign({}, ...parts)).run();
}
