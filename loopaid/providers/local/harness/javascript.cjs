// What runs inside a JavaScript session: loads one program and executes it on windows of items.
//
// The modules of Node.js 18, which Deno has too, and nothing else. The protocol stands at the top of python.py, the
// format of rows in loopaid/wire/rows.py; this file does the same with what Node.js has:
//
// - The pipes are opened anew through /proc, so that no child inherits them, and the one from the daemon twice: to wait
//   on it between windows, and to look without waiting between items.
// - Items run one after the other on one stack, and the event loop turns only while an item is waited for and behind
//   each window. What the program left in it by then (timers, handles, children) taints the session; an error from there
//   is the running item's, and taints if there is none.
// - What the program can replace is taken before it runs: it may spoil its own items, but not how they are told.

'use strict';

const { closeSync, constants, fstatSync, ftruncateSync, openSync, readFileSync, readSync, writeSync } = require('fs');
const { createRequire, stripTypeScriptTypes } = require('module');
const vm = require('vm');

const READY = 1, LOADED = 2, LOAD_FAILED = 3, END = 4;
const LOAD = 1, RUN = 2, STAND_BACK = 5;
const OK = 0, PROGRAM_ERROR = 1, MEMORY_LIMIT = 4, OUTPUT_LIMIT = 5, INVALID_OUTPUT = 6, INVALID_INPUT = 7;
const STOP_CHECK_MS = 2;
const ROWS_BYTES_PER_WINDOW = 4 << 20;
const FRAME_BYTES = 5, ROW_HEAD_BYTES = 22;
const TRACEBACK_CHARS_MAX = 16384, MESSAGE_CHARS_MAX = 4096, NAME_CHARS_MAX = 200;
const DEPTH_MAX = 512;
const PROGRAM_FILE = 'program.js';
const BROKEN = 70;  // exit code when the harness itself fails

const uncurried = Function.prototype.bind.bind(Function.prototype.call);
const { parse, stringify } = JSON;
const { isArray } = Array;
const { create, defineProperty, freeze, getOwnPropertyDescriptor, getOwnPropertyNames, getPrototypeOf, keys } = Object;
const { min } = Math;
const { allocUnsafe, byteLength, from: bufferFrom } = Buffer;
const text = String;
const tagOf = uncurried(Object.prototype.toString);
const slice = uncurried(String.prototype.slice);
const indexOf = uncurried(String.prototype.indexOf);
const split = uncurried(String.prototype.split);
const replaceAll = uncurried(String.prototype.replaceAll);
const test = uncurried(RegExp.prototype.test);
const utf8Write = uncurried(Buffer.prototype.utf8Write);  // `write` would look it up anew
const readUtf8 = uncurried(Buffer.prototype.utf8Slice);
const copy = uncurried(Uint8Array.prototype.set);
const part = uncurried(Uint8Array.prototype.subarray);
const then = uncurried(Promise.prototype.then);
const resolved = Promise.resolve.bind(Promise);
const now = performance.now.bind(performance);
const soon = setImmediate;
const exit = process.reallyExit.bind(process);
const kill = process._kill.bind(process);
const resources = process.getActiveResourcesInfo.bind(process);
const usage = process.resourceUsage.bind(process);

// --- the pipes

const settings = parse(process.env.LOOPAID_HARNESS);
delete process.env.LOOPAID_HARNESS;

function reopened(fd, flags) {
  return openSync('/proc/self/fd/' + fd, flags);
}

const SIGXFSZ = 25, SIG_IGN = 1, F_SETFD = 2;

/** Deno closes no descriptor that it has not opened, and has no word for a signal to be ignored, nor for execve. */
const deno = typeof Deno === 'undefined' ? null : Deno.dlopen('libc.so.6', {
  close: { parameters: ['i32'], result: 'i32' },
  execve: { parameters: ['buffer', 'buffer', 'buffer'], result: 'i32' },
  fcntl: { parameters: ['i32', 'i32', 'i32'], result: 'i32' },
  signal: { parameters: ['i32', 'usize'], result: 'usize' },
}).symbols;
const closeGiven = deno === null ? closeSync : deno.close;
if (deno !== null) deno.signal(SIGXFSZ, SIG_IGN);

const [downGiven, upGiven, rowsGiven] = settings.fds;
const down = reopened(downGiven, constants.O_RDONLY);
const downNow = reopened(downGiven, constants.O_RDONLY | constants.O_NONBLOCK);
const up = reopened(upGiven, constants.O_WRONLY);
const rows = reopened(rowsGiven, constants.O_WRONLY);
const stdout = reopened(1, constants.O_RDWR), stderr = reopened(2, constants.O_RDWR);
for (let each = 0; each < 3; each++) closeGiven(settings.fds[each]);

let buffer = allocUnsafe(1 << 17), filled = 0;
let scratch = allocUnsafe(1 << 16);

function writeUtf8(bytes, value, offset) {
  return utf8Write(bytes, value, offset, bytes.length - offset);
}

function put32(bytes, offset, value) {
  bytes[offset] = value >>> 24;
  bytes[offset + 1] = value >>> 16;
  bytes[offset + 2] = value >>> 8;
  bytes[offset + 3] = value;
}

function get32(bytes, offset) {
  return bytes[offset] * 0x1000000 + (bytes[offset + 1] << 16 | bytes[offset + 2] << 8 | bytes[offset + 3]);
}

function readMore(fd, wanted) {
  if (buffer.length < wanted) {
    const larger = allocUnsafe(wanted);
    copy(larger, part(buffer, 0, filled));
    buffer = larger;
  }
  const count = readSync(fd, buffer, filled, buffer.length - filled, null);
  if (count === 0) exit(0);
  filled += count;
}

/** Wait for a frame; take(kind, payload) must be done with the payload when it returns. */
function readFrame(take) {
  let end = FRAME_BYTES;
  while (filled < end) {
    readMore(down, end);
    if (filled >= FRAME_BYTES) end = FRAME_BYTES + get32(buffer, 1);
  }
  end = FRAME_BYTES + get32(buffer, 1);
  while (filled < end) readMore(down, end);
  const kind = buffer[0];
  const payload = take === null ? null : readUtf8Parts(kind, end);
  copy(buffer, part(buffer, end, filled));
  filled -= end;
  if (take !== null) take(kind, payload);
}

/** The texts of a frame: of RUN what it says about the window, and the inputs; of others the one that there is. */
function readUtf8Parts(kind, end) {
  if (kind !== RUN) return { first: readUtf8(buffer, FRAME_BYTES, end), second: '' };
  const begin = FRAME_BYTES + 4 + get32(buffer, FRAME_BYTES);
  return { first: readUtf8(buffer, FRAME_BYTES + 4, begin), second: readUtf8(buffer, begin, end) };
}

/** Look without waiting. Between RUN and END the daemon sends nothing but STOP. */
function stopRequested() {
  if (filled === 0) {
    try {
      readMore(downNow, buffer.length);
    } catch (error) {
      if (error.code === 'EAGAIN') return false;
      throw error;
    }
  }
  readFrame(null);
  return true;
}

function writeAll(fd, bytes, length) {
  let written = 0;
  while (written < length) written += writeSync(fd, bytes, written, length - written);
}

function send(kind, json) {
  const frame = allocUnsafe(FRAME_BYTES + 3 * json.length);
  const length = json === '' ? 0 : writeUtf8(frame, json, FRAME_BYTES);
  frame[0] = kind;
  put32(frame, 1, length);
  writeAll(up, frame, FRAME_BYTES + length);
}

// --- what the program printed

let taken = '', takenTruncated = false;

/** Take what was written to a memory file since the last time, and forget it there; answer its size. */
function take(fd, limit) {
  const size = fstatSync(fd).size;
  if (size === 0) {
    taken = '';
    takenTruncated = false;
    return 0;
  }
  const bytes = allocUnsafe(min(size, limit));
  const count = bytes.length === 0 ? 0 : readSync(fd, bytes, 0, bytes.length, 0);
  ftruncateSync(fd, 0);
  taken = readUtf8(bytes, 0, count);
  takenTruncated = size > limit;
  return size;
}

/** A JSON string; half a surrogate pair, which no UTF-8 can say, is replaced. */
function quoted(value) {
  return stringify(readUtf8(bufferFrom(value, 'utf8')));
}

// --- errors

class Exit extends Error {}

/** `error` as JSON {type, message, traceback}, without the frames of the harness. */
function described(error) {
  let name = 'Error', message = '', trace = '';
  try {
    if (error !== null && typeof error === 'object' && typeof error.stack === 'string') {
      name = text(error.name);
      message = withoutUrl(text(error.message));
      trace = trimmed(error.stack);
    } else {
      name = error === null ? 'null' : typeof error === 'object' ? text(error.constructor.name) : typeof error;
      message = text(error);
    }
  } catch {
    message = message || '<no message: to make a text of it failed>';
  }
  return errorJson(name, message, trace);
}

function errorJson(name, message, trace) {
  return '{"type":' + quoted(slice(name, 0, NAME_CHARS_MAX)) + ',"message":' +
    quoted(slice(message, 0, MESSAGE_CHARS_MAX)) + (trace ? ',"traceback":' + quoted(trace) : '') + '}';
}

const INSIDE_DENO = /[ (]ext:/;

function trimmed(stack) {
  if (stack === '') return '';
  const lines = split(stack, '\n');
  let kept = '';
  for (let each = 0; each < lines.length; each++) {
    const line = lines[each];
    const foreign = indexOf(line, __filename) >= 0 || indexOf(line, 'node:internal/') >= 0 ||
      indexOf(line, '(node:vm:') >= 0 || indexOf(line, ' node:vm:') >= 0 || test(INSIDE_DENO, line);
    if (!(foreign && slice(line, 0, 7) === '    at ')) kept += line + '\n';
  }
  kept = withoutUrl(kept);
  if (kept.length <= TRACEBACK_CHARS_MAX) return kept;
  const half = TRACEBACK_CHARS_MAX / 2;
  return slice(kept, 0, half) + '\n  ...\n' + slice(kept, kept.length - half);
}

/** A module's is all of its source. */
function withoutUrl(words) {
  return moduleUrl ? replaceAll(words, moduleUrl, PROGRAM_FILE) : words;
}

function ranOutOfMemory(error) {
  try {
    return error !== null && typeof error === 'object' &&
      (error.code === 'ERR_MEMORY_ALLOCATION_FAILED' || error.message === 'Array buffer allocation failed');
  } catch {
    return false;
  }
}

// --- outputs

class NotJson extends Error {
  constructor(path, kind) {
    super(path + ': ' + kind);
  }
}

/** Whether JSON.stringify says all of a value as it is; false also when it takes a closer look to tell. */
function isPlain(value, depth) {
  switch (typeof value) {
    case 'string': case 'boolean': return true;
    case 'number': return value - value === 0;
    case 'object': break;
    default: return false;
  }
  if (value === null) return true;
  if (depth === DEPTH_MAX || value.toJSON !== undefined) return false;
  if (isArray(value)) {
    for (let each = 0; each < value.length; each++) if (!isPlain(value[each], depth + 1)) return false;
    return true;
  }
  const prototype = getPrototypeOf(value);
  if (prototype !== null && getPrototypeOf(prototype) !== null) return false;
  const names = keys(value);
  for (let each = 0; each < names.length; each++) if (!isPlain(value[names[each]], depth + 1)) return false;
  return true;
}

/** A copy that JSON.stringify says all of. Throws NotJson with the place of what JSON has no word for. */
function toPlain(value, key, path, parents, depth) {
  if (value !== null && typeof value === 'object' && typeof value.toJSON === 'function') value = value.toJSON(key);
  const tag = tagOf(value);
  if (typeof value === 'object' && (tag === '[object Number]' || tag === '[object String]' ||
      tag === '[object Boolean]')) value = value.valueOf();
  switch (typeof value) {
    case 'string': case 'boolean': return value;
    case 'number':
      if (value - value === 0) return value;
      throw new NotJson(path, text(value));
    case 'object': break;
    case 'bigint': throw new NotJson(path, 'BigInt');
    default: throw new NotJson(path, typeof value);
  }
  if (value === null) return null;
  for (let each = parents; each !== null; each = each.up) if (each.value === value) throw new NotJson(path, 'a cycle');
  if (depth === DEPTH_MAX) throw new NotJson('output', 'nesting too deep');
  const inside = { value, up: parents };
  if (isArray(value)) {
    const parts = [];
    for (let each = 0; each < value.length; each++) {
      define(parts, each, toPlain(value[each], text(each), path + '[' + each + ']', inside, depth + 1));
    }
    return parts;
  }
  if (tag !== '[object Object]' && tag !== '[object Arguments]') throw new NotJson(path, slice(tag, 8, -1));
  const plain = create(null), names = keys(value);
  for (let each = 0; each < names.length; each++) {
    const name = names[each];
    define(plain, name, toPlain(value[name], name, path + '.' + name, inside, depth + 1));
  }
  return plain;
}

function define(target, key, value) {
  defineProperty(target, key, { __proto__: null, value, writable: true, enumerable: true, configurable: true });
}

function encoded(value) {
  return stringify(isPlain(value, 0) ? value : toPlain(value, '', 'output', null, 0));
}

function outputFailure(error) {
  let message = 'it cannot be turned into JSON';
  try {
    message = error instanceof NotJson ? error.message : text(error.name) + ': ' + text(error.message);
  } catch {
    // what a program throws here is anything
  }
  return errorJson('InvalidOutput', message, '');
}

// --- waiting, for promises of the program and nothing else

let waiting = null, tainted = false;

function waitFor(promise, succeed, fail) {
  const ticket = waiting = { fail };
  const ended = (proceed) => (value) => {
    if (waiting !== ticket) return;
    waiting = null;
    guarded(() => proceed(value));
  };
  then(resolved(promise), ended(succeed), ended(fail));
}

/** Whatever runs in a turn of the event loop: our own failure is the end, and not an error of the program. */
function guarded(act) {
  try {
    act();
  } catch {
    exit(BROKEN);
  }
}

function failWaiting(error) {
  if (waiting === null) {
    tainted = true;
    return;
  }
  const { fail } = waiting;
  waiting = null;
  guarded(() => fail(error));
}

process.setUncaughtExceptionCaptureCallback(failWaiting);
process.on('beforeExit', () => {
  if (waiting === null) return;
  soon(() => {});  // or this was the last turn, also for what the next item waits for
  failWaiting({ name: 'PendingPromise', message: 'it awaits a promise that nothing is left to settle', stack: '' });
});
process.exit = function (code) {
  throw new Exit('the program called process.exit(' + (code === undefined ? '' : text(code)) + ')');
};
defineProperty(Exit.prototype, 'name', { __proto__: null, value: 'Exit' });

// --- the program

let call = null, isScript = false, digest = '', moduleUrl = '', baseline = 0;
const options = { __proto__: null, filename: PROGRAM_FILE };
const loader = (vm.constants || {}).USE_MAIN_CONTEXT_DEFAULT_LOADER;
if (loader !== undefined) options.importModuleDynamically = loader;

const MAIN = '\n;return typeof main === "undefined" ? undefined : main;';
const MODULE_MAIN = '\n;globalThis[Symbol.for("loopaid.main")] = typeof main === "undefined" ? undefined : main;' +
  '\n//# sourceURL=' + PROGRAM_FILE;
const RESULT = 'typeof result === "undefined" ? undefined : result';
const ASYNC_BEGIN = '(async () => {';
const NEEDS_MODULE = /^(Cannot use import statement|Cannot use 'import\.meta'|Unexpected token 'export'|await is only valid)/;
const WORDS_OF_MODULES = /\b(import|export|await)\b/;
const TYPESCRIPT = /^\s*(interface|type|enum|declare)\s+\w+|[\w)\]?]\s*:\s*(string|number|boolean|any|unknown|Record<|Array<)/m;

const programDirectory = settings.environment || '/tmp';
const programRequire = createRequire(programDirectory + '/' + PROGRAM_FILE);

function load(program) {
  digest = program.digest;
  isScript = program.shape === 'script';
  const make = isScript ? scriptCall : functionCall;
  let made;
  try {
    made = withoutTypes(make, program.source);
  } catch (error) {
    soon(loadFailed, error);
    return;
  }
  waitFor(made, (result) => {
    call = result;
    waiting = { fail: loadFailed };  // until the event loop has turned once
    soon(loadEnded);
  }, loadFailed);
}

/** TypeScript is JavaScript to a Node.js that can leave its types out, in place. */
function withoutTypes(make, source) {
  try {
    return make(source);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    if (stripTypeScriptTypes === undefined) {
      if (test(TYPESCRIPT, source)) {
        error.message += ' (TypeScript needs Node.js 22.13 or newer in [pool.javascript] interpreter)';
      }
      throw error;
    }
    const { emitWarning } = process;
    process.emitWarning = () => {};  // that this is experimental
    let stripped;
    try {
      stripped = stripTypeScriptTypes(source);
    } catch {
      throw error;
    } finally {
      process.emitWarning = emitWarning;
    }
    return make(stripped);
  }
}

function functionCall(source) {
  let body;
  try {
    body = vm.compileFunction(source + MAIN, ['require', 'module', 'exports', '__filename', '__dirname'], options);
  } catch (error) {
    if (needsModule(error, source)) return moduleCall(source);
    new vm.Script(source, options);  // says the same without what we added
    throw error;
  }
  const module = { exports: {} };
  const main = body(programRequire, module, module.exports, programDirectory + '/' + PROGRAM_FILE, programDirectory);
  return checkedMain(main || module.exports.main || module.exports);
}

/** Bun does not say it in words of its own. */
function needsModule(error, source) {
  if (!(error instanceof SyntaxError)) return false;
  return test(NEEDS_MODULE, error.message) || typeof Bun !== 'undefined' && test(WORDS_OF_MODULES, source);
}

function moduleCall(source) {
  moduleUrl = 'data:text/javascript;charset=utf-8,' + encodeURIComponent(source + MODULE_MAIN);
  return import(moduleUrl).then((exported) => {
    return checkedMain(globalThis[Symbol.for('loopaid.main')] || exported.main || exported.default);
  });
}

function checkedMain(main) {
  if (typeof main !== 'function') throw new ReferenceError('the program defines no function main(input_data)');
  return (input) => main(input);
}

function scriptCall(source) {
  let script, finish = new vm.Script(RESULT, options);
  try {
    script = new vm.Script(source, options);
  } catch (error) {
    if (!needsModule(error, source)) throw error;
    script = new vm.Script(ASYNC_BEGIN + source + '\n;return ' + RESULT + ';\n})()',
      { ...options, columnOffset: -ASYNC_BEGIN.length });
    finish = null;
  }
  const globals = hostGlobals();
  const parseInside = new vm.Script('JSON.parse');
  return () => {
    const context = newContext();
    for (let each = 0; each < globals.length; each++) defineProperty(context, globals[each].name, globals[each].as);
    context.input_data = parseInside.runInContext(context)(inputText);
    const value = script.runInContext(context);
    return finish === null ? value : finish.runInContext(context);
  };
}

function newContext() {
  const plain = (vm.constants || {}).DONT_CONTEXTIFY;
  return vm.createContext(plain === undefined ? {} : plain);
}

/** What a context of its own lacks of our globals: `console`, `setTimeout`, `fetch`, and what else is not ECMAScript. */
function hostGlobals() {
  const isInside = new vm.Script('(name) => name in globalThis').runInContext(newContext());
  const globals = [];
  for (const name of getOwnPropertyNames(globalThis)) {
    if (name === 'global' || isInside(name) && name !== 'console') continue;  // V8's own says nothing
    const { value, get } = getOwnPropertyDescriptor(globalThis, name);
    const as = { __proto__: null, configurable: true, enumerable: false };
    globals.push({ name, as: get ? { ...as, get: () => globalThis[name] } : { ...as, value, writable: true } });
  }
  globals.push({ name: 'require', as: { __proto__: null, configurable: true, writable: true, value: programRequire } });
  return globals;
}

function loadEnded() {
  guarded(() => {
    if (waiting === null) return;  // it failed in this turn
    waiting = null;
    take(stdout, 0);
    take(stderr, 0);
    baseline = resources().length;
    send(LOADED, '{}');
    serve();
  });
}

function loadFailed(error) {
  guarded(() => {
    waiting = null;
    call = () => {
      throw error;
    };
    const failure = slice(described(error), 0, -1);
    take(stdout, TRACEBACK_CHARS_MAX);
    const printed = ',"stdout":' + quoted(taken);
    take(stderr, TRACEBACK_CHARS_MAX);
    send(LOAD_FAILED, failure + printed + ',"stderr":' + quoted(taken) + '}');
    serve();
  });
}

// --- the window under way, and the item in it

let seq = 0, count = 0, done = 0, inputs = '', position = 0, inputText = '';
let stopOnError = false, patience = 0, looked = 0, written = 0, began = 0, ended = 0;
let batch = '', first = 0, attempt = 0, ids = null;

function itemId() {
  return ids === null ? text(first + done) : ids[done];
}

globalThis.loopaidItem = freeze({
  get id() {
    return itemId();
  },
  get attempt() {
    return attempt;
  },
  get idempotency_key() {
    return require('crypto').createHash('sha256').update(batch + '\0' + itemId() + '\0' + digest).digest('hex');
  },
});

function run(about, texts) {
  ({ seq, count, batch, first, attempt, ids, stop_on_error: stopOnError } = about);
  patience = about.eager_stop ? 0 : STOP_CHECK_MS;
  inputs = texts;
  done = position = written = 0;
  looked = now();
  goOn();
}

/** Execute items until the window is over or one has to be waited for. */
function goOn() {
  while (done < count) {
    let end = indexOf(inputs, '\n', position);
    if (end < 0) end = inputs.length;
    inputText = slice(inputs, position, end);
    position = end + 1;
    let value;
    try {
      value = parse(inputText);
    } catch (error) {
      began = ended = now();
      if (row(INVALID_INPUT, '', errorJson('InvalidInput', text(error.message), ''))) break;
      continue;
    }
    began = now();
    try {
      value = call(value);
      if (value !== null && typeof value === 'object' && typeof value.then === 'function') {
        waitFor(value, (output) => rowOf(output) ? soon(endWindow) : goOn(),
          (error) => failed(error) ? soon(endWindow) : goOn());
        return;
      }
    } catch (error) {
      if (failed(error)) break;
      continue;
    }
    if (rowOf(value)) break;
  }
  soon(endWindow);
}

/** The item has its output. This and the next two write its row, and answer whether the window ends behind it. */
function rowOf(value) {
  ended = now();
  let json;
  if (value === undefined && isScript) {
    return row(INVALID_OUTPUT, '', errorJson('NoResult', 'the script ended without assigning `result`', ''));
  }
  try {
    json = encoded(value);
  } catch (error) {
    return row(INVALID_OUTPUT, '', outputFailure(error));
  }
  if (json.length * 3 > settings.output_bytes_max && byteLength(json) > settings.output_bytes_max) {
    const message = byteLength(json) + ' bytes, more than output_bytes_max = ' + settings.output_bytes_max;
    return row(INVALID_OUTPUT, '', errorJson('InvalidOutput', message, ''));
  }
  return row(OK, json, '');
}

function failed(error) {
  ended = now();
  return row(ranOutOfMemory(error) ? MEMORY_LIMIT : PROGRAM_ERROR, '', described(error));
}

function row(status, output, error) {
  const outSize = take(stdout, settings.stdout_bytes_max), out = taken, outTruncated = takenTruncated;
  const errSize = take(stderr, settings.stderr_bytes_max), err = taken, errTruncated = takenTruncated;
  if (outSize >= fileBytesMax || errSize >= fileBytesMax) {
    status = OUTPUT_LIMIT;
    output = '';
    error = errorJson('OutputLimit', 'the program printed more than ' + fileBytesMax + ' bytes', '');
  }
  let extra = '';
  if (error !== '') extra += ',"error":' + error;
  if (out !== '') extra += ',"stdout":' + quoted(out);
  if (err !== '') extra += ',"stderr":' + quoted(err);
  if (outTruncated) extra += ',"stdout_truncated":true';
  if (errTruncated) extra += ',"stderr_truncated":true';
  written += writeRow(status, output, extra === '' ? '' : '{' + slice(extra, 1) + '}');
  seq = (seq + 1) % 0x100000000;
  done += 1;
  if (status === OUTPUT_LIMIT) tainted = true;
  if (status === OUTPUT_LIMIT || written > ROWS_BYTES_PER_WINDOW || (stopOnError && status !== OK)) return true;
  if (ended - looked <= patience) return false;
  looked = ended;
  return stopRequested();
}

function writeRow(status, output, extra) {
  const most = ROW_HEAD_BYTES + 5 + 3 * (output.length + extra.length);
  const bytes = most <= scratch.length ? scratch : allocUnsafe(most);
  const length = output === '' ? 0 : writeUtf8(bytes, output, ROW_HEAD_BYTES);
  let end = ROW_HEAD_BYTES + length;
  if (extra === '') {
    bytes[end++] = 0xc0;
  } else {
    const size = writeUtf8(bytes, extra, end + 5);
    bytes[end] = 0xc6;
    put32(bytes, end + 1, size);
    end += 5 + size;
  }
  bytes[0] = 0x96;
  bytes[1] = bytes[6] = bytes[12] = 0xce;
  put32(bytes, 2, end);
  put32(bytes, 7, seq);
  bytes[11] = status;
  put32(bytes, 13, min(0xffffffff, (ended - began) * 1000));
  bytes[17] = 0xc6;
  put32(bytes, 18, length);
  writeAll(rows, bytes, end);
  return end;
}

/** In a turn of its own: what the items left to run has run, or is seen. */
function endWindow() {
  guarded(() => {
    if (sweeps && sweep()) tainted = true;
    if (resources().length > baseline) tainted = true;
    send(END, '{"done":' + done + ',"tainted":' + tainted + ',"rss_bytes":' + usage().maxRSS * 1024 + '}');
    serve();
  });
}

/** Kill what the program left running; true when there was something. */
function sweep() {
  return kill(-1, 9) === 0;
}

/** kill(-1) is for a sandbox alone: our own pid is small there and pid 1 is bubblewrap's. */
function livesInAPidNamespace() {
  try {
    return process.pid < 10 && process.ppid <= 1 && readFileSync('/proc/1/comm', 'utf8').trim() === 'bwrap';
  } catch {
    return false;
  }
}

const sweeps = settings.sweep && livesInAPidNamespace();
const fileBytesMax = settings.limits.FSIZE;

/** Items get processes of their own: let a parent of such, which is a harness in Python, have the session. */
function standBack() {
  if (deno !== null) makeWay();
  const { spawn } = require('child_process');
  const [program, ...about] = settings.parent;
  const given = stringify({ ...settings, fds: [3, 4, 5] });
  const parent = spawn(program, about, {
    env: { ...process.env, LOOPAID_HARNESS: given }, stdio: ['ignore', 'inherit', 'inherit', down, up, rows],
  });
  for (const fd of [down, downNow, up, rows, stdout, stderr]) closeSync(fd);
  process.on('SIGUSR1', () => {});  // or it has Node.js listen for a debugger, whoever that may be
  parent.on('exit', (code, signal) => signal === null ? exit(code) : process.kill(process.pid, signal));
}

/** Become it; on Deno, which would listen for a debugger whatever one does. */
function makeWay() {
  const fds = [down, up, rows];
  for (const fd of fds) deno.fcntl(fd, F_SETFD, 0);
  const given = { ...process.env, LOOPAID_HARNESS: stringify({ ...settings, fds }) };
  const words = (list) => list.map((each) => bufferFrom(each + '\0'));
  const pointers = (list) => {
    return new BigUint64Array([...list.map((each) => Deno.UnsafePointer.value(Deno.UnsafePointer.of(each))), 0n]);
  };
  const about = words(settings.parent), env = words(keys(given).map((name) => name + '=' + given[name]));
  deno.execve(about[0], pointers(about), pointers(env));
  exit(BROKEN);
}

function serve() {
  let act = null;
  while (act === null) {
    readFrame((kind, { first: head, second }) => {
      if (kind === RUN) {
        act = () => run(parse(head), second);
      } else if (kind === LOAD) {
        act = () => load(parse(head));
      } else if (kind === STAND_BACK) {
        act = standBack;
      }
    });
  }
  act();
}

send(READY, '{"version":' + quoted(process.versions.node) + '}');
soon(() => guarded(serve));
