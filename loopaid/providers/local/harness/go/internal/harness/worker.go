package harness

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	statusOK, statusProgramError                               = 0, 1
	statusOutputLimit, statusInvalidOutput, statusInvalidInput = 5, 6, 7
	stopCheck                                                  = 2 * time.Millisecond
	rowsBytesPerWindow                                         = 4 << 20
	rowHeadBytes                                               = 22
	messageBytesMax, nameBytesMax, scratchBytesKept            = 4096, 200, 1 << 20
)

// window is what RUN says about the items that follow it.
type window struct {
	Seq         uint32   `json:"seq"`
	Count       int      `json:"count"`
	StopOnError bool     `json:"stop_on_error"`
	EagerStop   bool     `json:"eager_stop"`
	Batch       string   `json:"batch"`
	First       int      `json:"first"`
	Attempt     int      `json:"attempt"`
	CPU         uint64   `json:"cpu_s"`
	Ids         []string `json:"ids"`
}

// failure is why an item did not succeed.
type failure struct {
	Type      string `json:"type"`
	Message   string `json:"message"`
	Traceback string `json:"traceback,omitempty"`
}

type extra struct {
	Error           *failure `json:"error,omitempty"`
	Stdout          string   `json:"stdout,omitempty"`
	Stderr          string   `json:"stderr,omitempty"`
	StdoutTruncated bool     `json:"stdout_truncated,omitempty"`
	StderrTruncated bool     `json:"stderr_truncated,omitempty"`
}

// worker executes the items of one program.
type worker struct {
	program        program
	down           *pipe
	up, rows       int
	stdout, stderr capture
	outputBytesMax int
	fileBytesMax   int
	sweeps         bool
	digest         string
	window         window
	position       int
	row            bytes.Buffer
	encoder        *json.Encoder
}

var working worker

// ItemID and the next two are for package loopaid_item.
func ItemID() string {
	if working.window.Ids == nil {
		return strconv.Itoa(working.window.First + working.position)
	}
	return working.window.Ids[working.position]
}

func ItemAttempt() int { return working.window.Attempt }

func ItemKey() string {
	key := sha256.Sum256([]byte(strings.Join([]string{working.window.Batch, ItemID(), working.digest}, "\x00")))
	return hex.EncodeToString(key[:])
}

func runProgram(given settings, main any) {
	setRuntimeLimits(given.Limits)
	w := &working
	w.down = &pipe{fd: lifted(given.Fds[0])}
	w.rows = lifted(given.Fds[2])
	w.stdout = capture{duplicate(1), given.StdoutBytesMax}
	w.stderr = capture{duplicate(2), given.StderrBytesMax}
	w.outputBytesMax = given.OutputBytesMax
	w.fileBytesMax = int(given.Limits["FSIZE"])
	w.up = lifted(given.Fds[1])
	syscall.Close(given.Program)
	w.sweeps = given.Sweep && livesInAPidNamespace()
	w.newEncoder()
	if given.Loaded != nil {
		w.load(main, *given.Loaded)
	} else {
		ready(w.up)
	}
	for {
		switch kind, payload := w.down.readFrame(); kind {
		case kindLoad:
			w.load(main, digestOf(payload))
		case kindRun:
			w.run(payload)
		}
	}
}

func (w *worker) load(main any, digest string) {
	w.digest = digest
	w.stdout.take() // what was printed before the first item is no item's
	w.stderr.take()
	adapted, problem := adapt(main)
	if problem != nil {
		send(w.up, kindLoadFailed, problem)
		return
	}
	w.program = adapted
	send(w.up, kindLoaded, struct{}{})
}

// run executes the items of a window, a row each, then says END.
func (w *worker) run(payload []byte) {
	done, tainted := w.runWindow(payload)
	if w.sweeps && sweep() {
		tainted = true
	}
	send(w.up, kindEnd, map[string]any{"done": done, "tainted": tainted, "rss_bytes": peakBytes(syscall.RUSAGE_SELF)})
}

func (w *worker) runWindow(payload []byte) (done int, tainted bool) {
	begin := 4 + int(binary.BigEndian.Uint32(payload))
	w.window = window{}
	if json.Unmarshal(payload[4:begin], &w.window) != nil {
		os.Exit(broken)
	}
	if w.window.CPU > 0 { // of an item with a process of its own; should nobody else watch it, the kernel does
		setLimits(map[string]uint64{"CPU": w.window.CPU + 1})
	}
	inputs, written, patience := payload[begin:], 0, stopCheck
	if w.window.EagerStop {
		patience = 0
	}
	looked := time.Now()
	for done < w.window.Count {
		var input []byte
		input, inputs, _ = bytes.Cut(inputs, []byte{'\n'})
		w.position = done
		status, size, ended := w.runItem(input, w.window.Seq+uint32(done))
		done++
		written += size
		if status == statusOutputLimit {
			return done, true
		}
		if written > rowsBytesPerWindow || (w.window.StopOnError && status != statusOK) {
			return done, false
		}
		if ended.Sub(looked) > patience {
			looked = ended
			if w.down.stopRequested() {
				return done, false
			}
		}
	}
	return done, false
}

// runItem executes one item and writes its row, whose size it answers.
func (w *worker) runItem(input []byte, seq uint32) (status byte, size int, ended time.Time) {
	w.row.Truncate(rowHeadBytes)
	value, status, problem := w.program.decode(input)
	begun := time.Now()
	ended = begun
	if problem == nil {
		value, problem = w.attempt(value)
		ended = time.Now()
		if problem != nil {
			status = statusProgramError
		} else if problem = w.encode(value); problem != nil {
			status = statusInvalidOutput
		}
	}
	status, said := w.said(status, problem)
	if status != statusOK {
		w.row.Truncate(rowHeadBytes)
	}
	output := w.row.Len() - rowHeadBytes
	if said == nil {
		w.row.WriteByte(0xc0)
	} else {
		w.row.Write(binary.BigEndian.AppendUint32([]byte{0xc6}, uint32(len(said))))
		w.row.Write(said)
	}
	row := w.row.Bytes()
	row[0], row[1], row[6], row[11], row[12], row[17] = 0x96, 0xce, 0xce, status, 0xce, 0xc6
	binary.BigEndian.PutUint32(row[2:], uint32(len(row)))
	binary.BigEndian.PutUint32(row[7:], seq)
	binary.BigEndian.PutUint32(row[13:], uint32(ended.Sub(begun).Microseconds()))
	binary.BigEndian.PutUint32(row[18:], uint32(output))
	writeAll(w.rows, row)
	if len(row) > scratchBytesKept {
		w.newEncoder()
	}
	return status, len(row), ended
}

func (w *worker) newEncoder() {
	w.row = bytes.Buffer{}
	w.row.Write(make([]byte, rowHeadBytes))
	w.encoder = json.NewEncoder(&w.row)
	w.encoder.SetEscapeHTML(false)
}

func (w *worker) attempt(input any) (output any, problem *failure) {
	defer func() {
		if reason := recover(); reason != nil {
			problem = describePanic(reason)
		}
	}()
	output, err := w.program.call(input)
	if err != nil {
		return nil, describeError(err)
	}
	return output, nil
}

// encode appends the output to the row. The value's own methods may run here.
func (w *worker) encode(value any) (problem *failure) {
	defer func() {
		if reason := recover(); reason != nil {
			problem = &failure{Type: "InvalidOutput", Message: clipped("panic: "+textOf(reason), messageBytesMax)}
		}
		if problem != nil {
			w.newEncoder()
		}
	}()
	if value == NoResult {
		return &failure{Type: "NoResult", Message: "the script ended without assigning `result`"}
	}
	if !isPlain(value, 0) {
		if where := offender(value); where != "" {
			return &failure{Type: "InvalidOutput", Message: clipped(where, messageBytesMax)}
		}
	}
	if err := w.encoder.Encode(value); err != nil {
		return &failure{Type: "InvalidOutput", Message: clipped(err.Error(), messageBytesMax)}
	}
	w.row.Truncate(w.row.Len() - 1) // the newline
	if size := w.row.Len() - rowHeadBytes; size > w.outputBytesMax {
		message := fmt.Sprintf("%d bytes, more than output_bytes_max = %d", size, w.outputBytesMax)
		return &failure{Type: "InvalidOutput", Message: message}
	}
	return nil
}

// said answers what there is to tell beside the output, nil for nothing, and the status in its light.
func (w *worker) said(status byte, problem *failure) (byte, []byte) {
	stdout, stdoutTruncated, stdoutSize := w.stdout.take()
	stderr, stderrTruncated, stderrSize := w.stderr.take()
	if problem == nil && stdoutSize == 0 && stderrSize == 0 {
		return status, nil
	}
	if stdoutSize >= w.fileBytesMax || stderrSize >= w.fileBytesMax {
		status = statusOutputLimit
		problem = &failure{Type: "OutputLimit", Message: fmt.Sprintf("the program printed more than %d bytes", w.fileBytesMax)}
	}
	text, err := json.Marshal(extra{problem, stdout, stderr, stdoutTruncated, stderrTruncated})
	if err != nil {
		os.Exit(broken)
	}
	return status, text
}

// sweep kills what the program left running, and tells whether there was something.
func sweep() bool {
	if syscall.Kill(-1, syscall.SIGKILL) != nil {
		return false
	}
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && err != syscall.EINTR {
			return true
		}
	}
}

func peakBytes(who int) int64 {
	var usage syscall.Rusage
	syscall.Getrusage(who, &usage)
	return int64(usage.Maxrss) * 1024
}
